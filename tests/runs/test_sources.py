from __future__ import annotations

from pathlib import Path

import pytest

from pwoa_plugin.config import ConfigError, DataConfig
from pwoa_plugin.runs.sources import check_there, images_for


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "small.pt").touch()
    for there in (str(tmp_path), str(tmp_path / "small.pt"), "shipped:robust_lenet_mnist", "timm:resnet18"):
        check_there(there)
    with pytest.raises(ConfigError, match=r"smal\.pt: holds no run and is not a checkpoint; did you mean .*small\.pt"):
        check_there(str(tmp_path / "smal.pt"))


def test_images_are_the_named_ones_else_a_run_s_own() -> None:
    own = DataConfig(name="cifar10", root="mine", download=False)
    assert images_for([], None, own, download=True, root=None) == own
    assert images_for([], None, own, download=True, root="other") == own.model_copy(update={"root": "other"})
    named = images_for([], "mnist", own, download=False, root=None)
    assert (named.name, named.root, named.download) == ("mnist", DataConfig(name="mnist").root, False)
    with pytest.raises(ConfigError, match="data is missing; give --data, one of mnist"):
        images_for([], None, None, download=True)


def test_the_size_of_a_folder_is_that_of_the_networks() -> None:
    pytest.importorskip("timm")
    of_224, of_240 = ("timm:resnet18", None), ("timm:tf_efficientnet_b1.in1k", None)
    assert images_for([of_224, of_224], "folder", None, download=True, root="x").image_size == 224
    assert images_for([of_224], "folder", None, download=True, root="x", image_size=32).image_size == 32
    assert images_for([of_224, of_240], "folder", None, download=True, root="x", channels=3).image_size is None
