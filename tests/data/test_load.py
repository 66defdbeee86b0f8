from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data.files import write_folder, write_mnist
from torch import Tensor

from pwoa_plugin.config import DataConfig
from pwoa_plugin.data import DataError, Loader, data_set, load_test, load_training, mnist_sample

Pairs = list[tuple[Tensor, Tensor]]


def equal(left: Pairs, right: Pairs) -> bool:
    pairs = zip(left, right, strict=True)
    return len(left) == len(right) and all(torch.equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True))


def rows(batches: Pairs) -> list[bytes]:
    return [image.numpy().tobytes() for x, _ in batches for image in x]


@pytest.fixture(params=["memory", "folder", "folder with workers"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., DataConfig]:
    """A data set of 62 training images, augmented."""
    if request.param == "memory":
        write_mnist(tmp_path, 62)
        usual = {"name": "mnist"}
    else:
        write_folder(tmp_path, 62)
        usual = {"name": "folder", "image_size": 12, "workers": 2 if "workers" in request.param else 0}
    return lambda **fields: DataConfig(**({"root": str(tmp_path), "augment": True} | usual | fields))


def test_importing_needs_no_torchvision() -> None:
    code = "import sys, pwoa_plugin.data, pwoa_plugin.models; print('torchvision' in sys.modules, 'PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_batches_are_as_stated(config: Callable[..., DataConfig]) -> None:
    train, validation, classes, shape = load_training(config(validation=0.2), batch_size=8)
    assert validation is not None
    assert (train.images, validation.images) == (50, 12)
    for loader, sizes in ((train, [8] * 6 + [2]), (validation, [8, 4])):
        assert len(loader) == len(sizes)
        for _ in range(2):
            batches = list(loader)
            assert [len(x) for x, _ in batches] == [len(y) for _, y in batches] == sizes
            for x, y in batches:
                assert tuple(x.shape[1:]) == shape
                assert x.dtype == torch.float32
                assert 0 <= float(x.min()) <= float(x.max()) <= 1
                assert y.dtype == torch.int64
                assert 0 <= int(y.min()) <= int(y.max()) < classes
    assert max(float(x.max()) for x, _ in train) > 0.8


def test_an_epoch_follows_from_the_global_state_at_its_start(config: Callable[..., DataConfig]) -> None:
    loader = load_training(config(), batch_size=8).train
    torch.manual_seed(0)
    first = list(loader)
    after = torch.get_rng_state()
    second = list(loader)
    assert not equal(first, second)
    torch.manual_seed(0)
    assert equal(first, list(loader))
    assert torch.equal(after, torch.get_rng_state())
    torch.manual_seed(0)
    again: Pairs = []
    for batch in loader:
        torch.rand(3)  # what a training step draws changes nothing
        again.append(batch)
    assert equal(first, again)
    torch.set_rng_state(after)
    assert equal(second[3:], list(loader.batches_from(3)))


def test_workers_change_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path)
    found = []
    for workers in (0, 2):
        made = DataConfig(name="folder", root=str(tmp_path), image_size=12, augment=True, workers=workers)
        torch.manual_seed(0)
        found.append([*load_training(made, batch_size=5).train, (torch.rand(1), torch.rand(1))])
    assert equal(*found)


def test_validation_draws_nothing_and_never_changes(config: Callable[..., DataConfig]) -> None:
    data = load_training(config(validation=0.2), batch_size=8)
    assert data.validation is not None
    torch.manual_seed(0)
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    first = list(data.validation)
    assert equal(first, list(data.validation))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (str(np.random.get_state()), random.getstate())
    plain = load_training(config(validation=0.2, augment=False), batch_size=8)
    assert equal(first, list(plain.validation or ()))
    assert not set(rows(first)) & set(rows(list(plain.train)))


def test_without_augmentation_an_epoch_is_every_image_once(config: Callable[..., DataConfig]) -> None:
    whole = rows(list(load_training(config(augment=False, validation=0), batch_size=62).train))
    assert len(whole) == len(set(whole)) == 62
    data = load_training(config(augment=False, validation=0.1), batch_size=8)
    assert sorted(rows(list(data.train)) + rows(list(data.validation or ()))) == sorted(whole)
    assert load_training(config(validation=0), batch_size=8).validation is None


def test_images_counts_training_and_validation_both(config: Callable[..., DataConfig]) -> None:
    data = load_training(config(images=30, validation=0.3), batch_size=8)
    assert data.validation is not None
    assert (data.train.images, data.validation.images) == (21, 9)
    counts = torch.cat([y for loader in (data.train, data.validation) for _, y in loader]).bincount()
    assert int(counts.max() - counts.min()) <= 1


def test_split_follows_its_seed_alone(config: Callable[..., DataConfig]) -> None:
    found = []
    for seed, state in ((0, 1), (0, 2), (5, 1)):
        torch.manual_seed(state)
        np.random.seed(state)
        found.append(rows(list(load_training(config(split_seed=seed, validation=0.2), batch_size=8).validation or ())))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_last_batch_of_one_is_left_out_of_training_only(tmp_path: Path) -> None:
    write_mnist(tmp_path, 26)
    mnist = DataConfig(name="mnist", root=str(tmp_path))
    source = data_set(mnist)(mnist, train=True)
    index = torch.arange(17)
    for shuffle, sizes in ((True, [8, 8]), (False, [8, 8, 1])):
        loader = Loader(source, index, batch_size=8, shuffle=shuffle)
        assert [len(x) for x, _ in loader] == sizes
        assert len(loader) == len(sizes)
    assert len(list(Loader(source, index[:1], batch_size=8))) == 1
    assert list(loader.batches_from(3)) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"images": 63}, r"data\.images=63 is more than the 62 training images; leave it out"),
        ({"images": 2}, r"data\.validation=0\.1 leaves 1 of 2 images to train on; lower it, or raise data\.images"),
        ({"validation": 0.99}, r"data\.validation=0\.99 leaves 1 of 62 images"),
    ],
)
def test_too_few_images_are_told_in_a_line(tmp_path: Path, fields: dict[str, float], said: str) -> None:
    write_mnist(tmp_path, 62)
    with pytest.raises(DataError, match=said):
        load_training(DataConfig(name="mnist", root=str(tmp_path), **fields), batch_size=8)  # type: ignore[arg-type]


def test_test_images_are_drawn_by_class(config: Callable[..., DataConfig]) -> None:
    x, y = load_test(config())
    classes = int(y.max()) + 1
    few, labels = load_test(config(), images=2 * classes, seed=1)
    assert labels.bincount().tolist() == [2] * classes
    of_all = dict(zip(rows([(x, y)]), y.tolist(), strict=True))
    assert [of_all[row] for row in rows([(few, labels)])] == labels.tolist()
    assert torch.equal(few, load_test(config(), images=2 * classes, seed=1)[0])
    assert not torch.equal(few, load_test(config(), images=2 * classes, seed=2)[0])
    for images in (0, len(x) + 1):
        with pytest.raises(DataError, match=rf"images={images} \(--sample\): the test set of .* has {len(x)}"):
            load_test(config(), images=images)


def test_mnist_sample_by_name_is_mnist_sample() -> None:
    made = DataConfig(name="mnist-sample", validation=0)
    to_prune, to_judge = mnist_sample()
    x, y = load_test(made)
    assert torch.equal(x, to_judge.tensors[0])
    assert torch.equal(y, to_judge.tensors[1])
    assert sorted(rows(list(load_training(made, batch_size=512).train))) == sorted(rows([to_prune.tensors]))
