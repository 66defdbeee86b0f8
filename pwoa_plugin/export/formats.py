"""The formats, by name. A new one is one file here and one line in ``FORMATS``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable

from .._files import named_path
from .._text import did_you_mean
from ..errors import InputError
from .base import Format

#: Formats by name: ``module:class`` in this folder. Of two with one suffix, the first is meant by a file's name.
FORMATS: dict[str, str] = {
    "sparse": "zeros:Sparse",
    "onnx": "onnx:ONNX",
    "pt2": "pt2:PT2",
    "pte": "pte:PTE",
    "semi-structured": "zeros:SemiStructured",
}


def make_format(name: str) -> Format:
    """The format of that name; InputError if there is none."""
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS, f"known are {', '.join(FORMATS)}")
        raise InputError(f"format={name!r} is unknown{hint}")
    module, _, kind = FORMATS[name].partition(":")
    made: Format = getattr(importlib.import_module(f".{module}", __package__), kind)()
    return made


def format_of(path: str | os.PathLike[str], name: str | None = None) -> str:
    """The name of the format of a file that is to be written: ``name``, else what the file's suffix stands for.

    Raises:
        InputError: there is no such format, or the suffix stands for none or for another one.
    """
    file = named_path("out", path).name
    suffixes = {known: make_format(known).suffix for known in FORMATS}
    by_suffix = [known for known, suffix in suffixes.items() if file.endswith(suffix)]
    if name is None:
        if not by_suffix:
            known = _listed(suffixes.values())
            raise InputError(f"{file}: its suffix names no format; end it in {known}, or name a format")
        return by_suffix[0]
    suffix = make_format(name).suffix
    if by_suffix and name not in by_suffix:
        raise InputError(f"{file}: has the suffix of {by_suffix[0]}, and format={name!r} is given; end it in {suffix}")
    return name


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
