"""Protocols: which attacks judge, by name and version, in YAML files."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from .._text import one_line
from .._yaml import YAMLError, parse_yaml
from ..errors import InputError
from .attacks import FAMILIES, NORMS, Attack, AutoAttack, make_attack

__all__ = ["PROTOCOLS", "Protocol", "load_protocol", "parse_radius"]

_FILES = files(__package__) / "protocols"
PROTOCOLS = tuple(sorted(entry.name.removesuffix(".yaml") for entry in _FILES.iterdir()))
"""Names of the protocols that come with the package."""

_MOST_BYTES = 100_000


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How to judge: what a report states by name and version, so that two reports can be compared.

    Attributes:
        name: of the protocol.
        version: raised whenever its attacks change.
        attacks: in the order of the report's columns.
        norm: of the ball, where the protocol is for one; else None.
        eps: radius in pixel units, where the protocol is for one; else None.
        sample: images to judge, drawn by class; None is all.
    """

    name: str
    version: int
    attacks: tuple[Attack, ...]
    norm: str | None = None
    eps: float | None = None
    sample: int | None = None


def load_protocol(protocol: str | os.PathLike[str] | Protocol) -> Protocol:
    """A protocol by its name or from a file.

    Args:
        protocol: ``quick``, ``paper``, ``standard``; or a YAML file with ``name``, ``version`` and ``attacks``, and
            ``extends`` (a protocol whose attacks come first), ``norm``, ``eps`` and ``sample`` where wanted. An attack
            is a name, as ``PGD-40``, or ``{attack: PGD, steps: 40, restarts: 5}``.

    Raises:
        ValueError: there is none of that name, or the file is no protocol; one line names the field.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if not isinstance(protocol, (str, os.PathLike)):
        raise InputError(f"protocol={protocol!r} is no protocol; give a name, a YAML file or a Protocol")
    name = os.fspath(protocol)
    if name in PROTOCOLS:
        return _shipped(name)
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        close = difflib.get_close_matches(name.lower(), PROTOCOLS, n=1)
        cure = f"did you mean {close[0]}?" if close else f"use {', '.join(PROTOCOLS)} or a .yaml file"
        raise InputError(f"protocol={name!r} is unknown; {cure}")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"protocol={name!r} cannot be read ({error.strerror}); give a YAML file") from None
    if len(text) > _MOST_BYTES:
        raise InputError(f"protocol={name!r} has {len(text):,} bytes; that is no protocol")
    try:
        return _parsed(parse_yaml(text), shipped=False)
    except (YAMLError, ValueError, TypeError) as error:
        raise InputError(f"protocol={name!r}: {one_line(error)}") from None


@cache
def _shipped(name: str) -> Protocol:
    return _parsed(parse_yaml((_FILES / f"{name}.yaml").read_text(encoding="utf-8")), shipped=True)


_KEYS = ("name", "version", "extends", "norm", "eps", "sample", "attacks")


def _parsed(content: Any, *, shipped: bool) -> Protocol:
    if not isinstance(content, Mapping):
        raise InputError("is no mapping; give name, version and attacks")
    for key in content:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            cure = f"did you mean {close[0]}?" if close else f"known: {', '.join(_KEYS)}"
            raise InputError(f"{key}: unknown key; {cure}")
    name, version = content.get("name"), content.get("version", 1)
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"name={name!r} names no protocol; give a non-empty string")
    if name in PROTOCOLS and not shipped:
        raise InputError(f"name={name!r} is a protocol of the package's own; give this one another name")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"version={version!r}; give an integer of 1 or more")
    base = content.get("extends")
    if base is not None and base not in PROTOCOLS:
        raise InputError(f"extends={base!r} is unknown; use {', '.join(PROTOCOLS)}")
    attacks = [] if base is None else list(_shipped(base).attacks)
    listed = content.get("attacks", [])
    if not isinstance(listed, list):
        raise InputError(f"attacks={listed!r} is no list")
    attacks += [_attack(item, f"attacks.{i}") for i, item in enumerate(listed)]
    if not attacks:
        raise InputError("attacks is empty; name one at least, such as PGD-20")
    norm, eps, sample = content.get("norm"), content.get("eps"), content.get("sample")
    if norm is not None and norm not in NORMS:
        raise InputError(f"norm={norm!r} is unknown; use {' or '.join(NORMS)}")
    if sample is not None and (not isinstance(sample, int) or isinstance(sample, bool) or sample < 1):
        raise InputError(f"sample={sample!r} is no count; give an integer of 1 or more, or leave it out for all")
    return Protocol(
        name=name,
        version=version,
        attacks=tuple(attacks),
        norm=norm,
        eps=None if eps is None else parse_radius(eps),
        sample=sample,
    )


def parse_radius(value: Any) -> float:
    """A radius as files and command lines have it: a number, or text as ``8/255``.

    Raises:
        ValueError: it is no positive number.
    """
    try:
        radius = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        radius = 0.0
    if not 0 < radius < float("inf") or isinstance(value, bool):
        raise InputError(f"eps={value!r} is no radius; give a positive number of pixel units, such as 8/255")
    return radius


def _attack(item: Any, field: str) -> Attack:
    if isinstance(item, str):
        return make_attack(item)
    if not isinstance(item, Mapping) or item.get("attack") not in FAMILIES:
        raise InputError(f"{field}={item!r}: give a name, or {{attack: NAME, ...}} with {', '.join(FAMILIES)}")
    arguments = {str(key): value for key, value in item.items() if key != "attack"}
    try:
        attack = FAMILIES[item["attack"]](**arguments)
    except TypeError as error:
        said = str(error).split("() ", 1)[-1].replace("__init__", item["attack"])
        raise InputError(f"{field}: {item['attack']} {said}") from None
    except ValueError as error:
        raise InputError(f"{field}: {error}") from None
    if attack.name == "AutoAttack" and not (isinstance(attack, AutoAttack) and attack.is_standard):
        raise InputError(f"{field}: name='AutoAttack' is the standard one's, whole; give this attack another name")
    return attack
