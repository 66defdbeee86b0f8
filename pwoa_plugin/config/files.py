"""A config's fields in a YAML or JSON file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .._files import read_bytes
from .._section import ConfigError
from .._yaml import YAMLError, parse_yaml

_MOST_BYTES = 100_000  # the package's own have two thousand


def read_fields(path: str | os.PathLike[str], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in a file, with changes by dotted name; see `PwoAConfig.from_yaml`."""
    try:
        values = parse_yaml(read_bytes(path, most=_MOST_BYTES))
    except YAMLError as error:
        raise ConfigError(f"{os.fspath(path)}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{os.fspath(path)}: holds no mapping of fields; `pwoa init` writes one to start from")
    if "train_loader" in values:
        raise ConfigError(f"{os.fspath(path)}: train_loader: a file names its images under data:")
    for name, value in changes.items():
        *sections, key = name.split(".")
        place = values
        for section in sections:
            place[section] = place[section] if isinstance(place.get(section), dict) else {}
            place = place[section]
        place[key] = value
    return values
