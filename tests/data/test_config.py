"""Which images a file's run uses."""

from __future__ import annotations

import pytest

from pwoa_plugin.data import DATASETS, DataConfig, ImageSet, data_set


@pytest.mark.parametrize("name", DATASETS)
def test_every_name_is_a_data_set(name: str) -> None:
    config = DataConfig(name=name, **({"image_size": 8} if name == "folder" else {}))
    assert issubclass(data_set(config), ImageSet)


def test_the_size_of_images_belongs_to_a_folder() -> None:
    with pytest.raises(ValueError, match="image_size is missing"):
        data_set(DataConfig(name="folder")).describe(DataConfig(name="folder"))
    with pytest.raises(ValueError, match="image_size=32 goes with name='folder'"):
        DataConfig(name="mnist", image_size=32)
    with pytest.raises(ValueError, match="name='svhn' is unknown; use one of mnist, cifar10"):
        DataConfig(name="svhn")
