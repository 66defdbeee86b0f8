from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import os
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from data.files import write_cifar10, write_cifar100, write_mnist

from pwoa_plugin.config import DataConfig
from pwoa_plugin.data import DataError, data_set, load_test, load_training

Known = Callable[[str | os.PathLike[str]], None]


def refusal(**fields: object) -> str:
    with pytest.raises(DataError) as error:
        load_training(DataConfig(**fields), batch_size=4)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "write", "reader", "classes", "shape"),
    [
        ("mnist", write_mnist, torchvision.datasets.MNIST, 10, (1, 28, 28)),
        ("cifar10", write_cifar10, torchvision.datasets.CIFAR10, 10, (3, 32, 32)),
        ("cifar100", write_cifar100, torchvision.datasets.CIFAR100, 100, (3, 32, 32)),
    ],
)
def test_images_are_torchvision_s(  # type: ignore[no-untyped-def]
    tmp_path: Path, known_cifar: Known, name, write, reader, classes, shape
) -> None:
    write(tmp_path)
    known_cifar(tmp_path)
    config = DataConfig(name=name, root=str(tmp_path), download=False, augment=False)
    assert data_set(config).describe(config) == (classes, shape)
    x, y = load_test(config)
    theirs = reader(tmp_path, train=False, transform=torchvision.transforms.ToTensor())
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(x, torch.stack([image for image, _ in theirs]))
    assert y.tolist() == [label for _, label in theirs]
    train, validation, n_classes, n_shape = load_training(config, batch_size=16)
    assert (n_classes, n_shape) == (classes, shape)
    theirs = reader(tmp_path, train=True, transform=torchvision.transforms.ToTensor())
    expected = {(image.numpy().tobytes(), label) for image, label in theirs}
    assert validation is not None
    got = [
        (image.numpy().tobytes(), int(label))
        for loader in (train, validation)
        for x, y in loader
        for image, label in zip(x, y, strict=True)
    ]
    assert set(got) == expected
    assert len(got) == len(theirs)


def test_only_cifar_is_augmented_unless_told(tmp_path: Path, known_cifar: Known) -> None:
    write_cifar10(tmp_path)
    write_mnist(tmp_path)
    known_cifar(tmp_path)
    for name, augment, changed in (
        ("cifar10", None, True),
        ("cifar10", False, False),
        ("mnist", None, False),
        ("mnist", True, True),
    ):
        config = DataConfig(name=name, root=str(tmp_path), augment=augment, validation=0)
        plain = DataConfig(name=name, root=str(tmp_path), augment=False, validation=0)
        whole = {image.numpy().tobytes() for x, _ in load_training(plain, batch_size=16).train for image in x}
        seen = {image.numpy().tobytes() for x, _ in load_training(config, batch_size=16).train for image in x}
        assert (seen != whole) == changed


def test_cifar_that_is_not_the_published_is_never_unpickled(tmp_path: Path) -> None:
    """The files are pickles: a payload in one must not run."""
    mark = tmp_path / "mark"

    class Payload:
        def __reduce__(self) -> object:
            return open, (str(mark), "w")

    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Payload()))
    said = refusal(name="cifar10", root=str(tmp_path), download=False)
    assert "damaged or missing files in" in said
    assert "set data.download to true" in said
    assert not mark.exists()


def test_missing_files_are_told_with_the_cure(tmp_path: Path) -> None:
    for name, folder in (("mnist", "MNIST/raw"), ("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")):
        said = refusal(name=name, root=str(tmp_path / "none"), download=False)
        assert f"data.root={str(tmp_path / 'none')!r}: there is no {tmp_path / 'none' / folder}" in said
        assert "set data.download to true, or put torchvision's files there" in said
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    assert "fails (NotADirectoryError: " in refusal(name="mnist", root=str(tmp_path / "file"))


def test_a_failing_download_names_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    for name, folder in (("mnist", "MNIST/raw"), ("cifar10", "cifar-10-batches-py")):
        said = refusal(name=name, root=str(tmp_path))
        assert f"downloading to {tmp_path / folder} fails" in said
        assert "put torchvision's files there" in said
    (tmp_path / "images").mkdir()
    assert refusal(name="cifar10", root=str(tmp_path / "imagse")).endswith("; did you mean images?")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a server of what is in ``tmp_path / "served"``."""
    (tmp_path / "served").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path / "served"))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_mnist_is_downloaded(tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "there")
    resources = []
    for file in sorted((tmp_path / "there" / "MNIST" / "raw").iterdir()):
        packed = gzip.compress(file.read_bytes())
        (tmp_path / "served" / f"{file.name}.gz").write_bytes(packed)
        resources.append((f"{file.name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [served])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    config = DataConfig(name="mnist", root=str(tmp_path / "here"))
    there = DataConfig(name="mnist", root=str(tmp_path / "there"))
    assert torch.equal(load_test(config)[0], load_test(there)[0])


def test_damaged_cifar_is_downloaded_again(
    tmp_path: Path, served: str, known_cifar: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar10(tmp_path)
    known_cifar(tmp_path)
    reader = torchvision.datasets.CIFAR10
    archive = tmp_path / "served" / reader.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / reader.base_folder, reader.base_folder)
    monkeypatch.setattr(reader, "url", served + reader.filename)
    monkeypatch.setattr(reader, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    config = DataConfig(name="cifar10", root=str(tmp_path))
    whole = load_test(config)[0]
    (tmp_path / reader.base_folder / "test_batch").write_bytes(b"cut short")
    assert torch.equal(load_test(config)[0], whole)


@pytest.mark.parametrize("damage", ["images", "labels", "both"])
def test_damaged_mnist_is_told_in_a_line(tmp_path: Path, damage: str) -> None:
    write_mnist(tmp_path)
    for kind in ("images-idx3", "labels-idx1"):
        file = tmp_path / "MNIST" / "raw" / f"train-{kind}-ubyte"
        if damage in ("both", kind.split("-")[0]):
            file.write_bytes(file.read_bytes()[:-7])
    said = refusal(name="mnist", root=str(tmp_path))
    assert "delete them and run again" in said
    assert str(tmp_path / "MNIST" / "raw") in said


def test_labels_must_go_with_the_images(tmp_path: Path) -> None:
    write_mnist(tmp_path, 60)
    write_mnist(tmp_path / "other", 50)
    name = "MNIST/raw/train-labels-idx1-ubyte"
    (tmp_path / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert "(60, 1, 28, 28) images and 50 labels" in refusal(name="mnist", root=str(tmp_path))
