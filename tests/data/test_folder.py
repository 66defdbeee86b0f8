from __future__ import annotations

import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data.files import write_folder
from PIL import Image
from torchvision import transforms

from pwoa_plugin.config import DataConfig
from pwoa_plugin.data import DataError, data_set, load_test, load_training


def config(root: Path, **fields: object) -> DataConfig:
    return DataConfig(**({"name": "folder", "root": str(root), "image_size": 12} | fields))  # type: ignore[arg-type]


def refusal(made: DataConfig, *, test: bool = False) -> str:
    with pytest.raises(DataError) as error:
        _ = load_test(made) if test else list(load_training(made, batch_size=7).train)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("written", [1, 3])
def test_images_are_resized_cut_and_made_grey_or_colour(tmp_path: Path, channels: int, written: int) -> None:
    write_folder(tmp_path, channels=written, size=(20, 16))
    made = config(tmp_path, channels=channels)
    assert data_set(made).describe(made) == (3, (channels, 12, 12))
    x, y = load_test(made)
    colours = transforms.Grayscale(1) if channels == 1 else torch.nn.Identity()
    usual = transforms.Compose([transforms.Resize(12), transforms.CenterCrop(12), colours, transforms.ToTensor()])
    for i, path in enumerate(sorted((tmp_path / "test").glob("*/*"))):
        assert y[i] == ["cat", "dog", "owl"].index(path.parent.name)
        # Grey before the resizing or after differs by rounding.
        torch.testing.assert_close(x[i], usual(Image.open(path).convert("RGB")), atol=1.5 / 255, rtol=0)
    assert len(x) == 12


def test_val_will_do_for_test(tmp_path: Path) -> None:
    write_folder(tmp_path, test="val")
    assert len(load_test(config(tmp_path))[0]) == 12


def test_classes_are_train_s_where_test_lacks_one(tmp_path: Path) -> None:
    write_folder(tmp_path)
    shutil.rmtree(tmp_path / "test" / "cat")
    assert set(load_test(config(tmp_path))[1].tolist()) == {1, 2}
    shutil.rmtree(tmp_path / "train")
    assert set(load_test(config(tmp_path))[1].tolist()) == {0, 1}  # nothing else to go by


def test_what_is_wrong_with_a_folder_is_told_in_a_line(tmp_path: Path) -> None:
    field = f"data.root={str(tmp_path / 'a')!r}"
    assert f"{field}: there is no folder train in it" in refusal(config(tmp_path / "a"))
    (tmp_path / "a").mkdir()
    assert "there is no folder train in it" in refusal(config(tmp_path / "a"))
    assert "there is no folder test or val in it" in refusal(config(tmp_path / "a"), test=True)
    write_folder(tmp_path / "a")
    (tmp_path / "a" / "test" / "elk").mkdir()
    shutil.copy(next((tmp_path / "a" / "test" / "owl").iterdir()), tmp_path / "a" / "test" / "elk")
    assert "has a class 'elk' that train has not" in refusal(config(tmp_path / "a"), test=True)
    shutil.rmtree(tmp_path / "a" / "train")
    (tmp_path / "a" / "train" / "cat").mkdir(parents=True)
    assert "has 1 class folders" in refusal(config(tmp_path / "a"))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, workers: int) -> None:
    write_folder(tmp_path)
    broken = tmp_path / "train" / "owl" / "broken.png"
    shutil.copy(next((tmp_path / "train" / "owl").iterdir()), broken)
    broken.write_bytes(broken.read_bytes()[:200])
    made = config(tmp_path, workers=workers, validation=0)
    assert f"{broken} cannot be decoded" in refusal(made)
    broken.write_text("hello")
    assert f"{broken} cannot be decoded" in refusal(made)
    Image.fromarray(np.full((20, 20), 40_000, dtype=np.uint16)).save(broken)
    assert "has pixels of more than 8 bits (mode I;16)" in refusal(made)


def png(width: int, height: int, rows: int = 0) -> bytes:
    """A grey PNG whose header promises ``height`` rows, whatever it holds."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes((1 + width) * rows))) + chunk(b"IEND", b"")
    )


NO_IMAGE: dict[str, Callable[[Path], object]] = {
    "has 1000000 x 1 pixels, too long for a shorter side of 28": lambda path: path.write_bytes(png(1_000_000, 1, 1)),
    "has 1 x 1000000 pixels, too long for a shorter side of 28": lambda path: path.write_bytes(png(1, 1_000_000)),
    "cannot be decoded .*exceeds limit": lambda path: path.write_bytes(png(100_000, 100_000)),
    "is not a regular file; delete it": os.mkfifo,
    "is not a regular file; delete": lambda path: path.symlink_to("/dev/zero"),
    "cannot be decoded .*No such file": lambda path: path.symlink_to("nowhere"),
    r"cannot be decoded \(cannot identify": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("said", NO_IMAGE)
def test_what_no_image_can_be_read_from_is_named_before_it_fills_the_memory_or_blocks(
    tmp_path: Path, said: str
) -> None:
    write_folder(tmp_path)
    bad = tmp_path / "train" / "owl" / "bad.png"
    NO_IMAGE[said](bad)
    assert re.search(f"{re.escape(str(bad))} {said}", refusal(config(tmp_path, image_size=28, validation=0)))


def test_limits_hold_where_pil_s_are_switched_off_and_memory_errors_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path)
    bad = tmp_path / "train" / "owl" / "bad.png"
    bad.write_bytes(png(100_000, 100_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert f"{bad} has 100000 x 100000 pixels, more than 178,956,970" in refusal(config(tmp_path, validation=0))

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", full)
    assert ".png needs more memory than there is" in refusal(config(tmp_path))


def test_a_class_without_an_image_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for image in (tmp_path / "train" / "owl").iterdir():
        image.unlink()
    assert "owl" in refusal(config(tmp_path))
