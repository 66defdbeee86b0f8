"""What commands name: networks, and the images to judge them by."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from .._files import near_name
from ..config import ConfigError, DataConfig
from ..data import DATASETS
from .network import architecture_of, is_named, own_of


def is_run(source: str) -> bool:
    """Whether a network is named by the folder of its run."""
    return os.path.isdir(source)


def check_there(source: str) -> None:
    """ConfigError unless this is a name, or the path of something."""
    if not is_named(source) and not os.path.exists(source):
        cure = near_name(source) or "; give an existing path"
        raise ConfigError(f"{source}: holds no run and is not a checkpoint{cure}")


def images_for(
    networks: Iterable[tuple[str, str | None]],
    data: str | None,
    own: DataConfig | None,
    *,
    download: bool,
    **given: Any,
) -> DataConfig:
    """The images of a data set that is named, else a run's own.

    Args:
        networks: the source and the ``arch`` of each. The image size of a folder, unless given, is that which all but
            runs were trained with.
        data: name of the data set.
        own: of a run.
        download: whether missing images may be downloaded, where the run does not forbid it.
        **given: other fields; None stands for one that is not given.

    Raises:
        ConfigError: neither ``data`` nor ``own`` is given, or a field cannot be used.
    """
    if data is not None:
        fields: dict[str, Any] = {"name": data, "download": True}
    elif own is not None:
        fields = own.model_dump()
    else:
        raise ConfigError(f"data is missing; give --data, one of {', '.join(DATASETS)}")
    if data == "folder" and given.get("image_size") is None:
        sizes = {own_of(architecture_of(path, arch), path).size for path, arch in networks if not is_run(path)}
        fields["image_size"] = sizes.pop() if len(sizes) == 1 else None
    fields |= {name: value for name, value in given.items() if value is not None}
    return DataConfig(**fields | {"download": fields["download"] and download})
