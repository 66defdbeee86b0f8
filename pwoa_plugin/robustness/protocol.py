"""Protocols: which attacks judge, by name and version, in YAML files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field

from .._files import read_bytes
from .._logits import Output
from .._pixels import positive_pixels
from .._section import Section
from .._text import did_you_mean, one_line
from .._yaml import parse_yaml
from ..errors import InputError
from .attacks import ARTAttack, Attack, AutoAttack, ImportedAttack, any_attack, make_attack
from .attacks.base import NORMS, positive_int

_FILES = files(__package__) / "protocols"
PROTOCOLS = tuple(sorted(entry.name.removesuffix(".yaml") for entry in _FILES.iterdir()))
"""Names of the protocols that come with the package."""

_MOST_BYTES = 100_000


def _norm(value: Any) -> str:
    by_lower = {name.lower(): name for name in NORMS}
    if not isinstance(value, str) or value.lower() not in by_lower:
        raise InputError(f"norm={value!r} is unknown; use {' or '.join(NORMS)}")
    return by_lower[value.lower()]


def as_attacks(attacks: Any) -> tuple[Attack, ...]:
    """The attacks of a list, or of one alone; see `any_attack` for what stands for one.

    ART's attacks of one class with other options are numbered, if they have no names of their own.
    """
    several = isinstance(attacks, Iterable) and not isinstance(attacks, (str, Mapping, type))
    made: dict[str, Attack] = {}
    for item in list(attacks) if several else [attacks]:
        attack = any_attack(item)
        if isinstance(attack, ARTAttack):
            attack = attack.beside(made.values())
        if attack.name in made:
            raise InputError(f"attacks: {attack.name!r} comes twice; give one of them another name=")
        made[attack.name] = attack
    if not made:
        raise InputError("attacks is empty; give at least one, such as 'PGD-20'")
    return tuple(made.values())


Pixels = Annotated[float, BeforeValidator(lambda value, info: positive_pixels(info.field_name, value))]
"""A positive number of pixel units, also as text such as ``8/255``."""
Count = Annotated[int, BeforeValidator(lambda value, info: positive_int(info.field_name, value))]
"""An integer of 1 or more."""
Norm = Annotated[str, BeforeValidator(_norm)]
"""A key of ``NORMS``, in any case."""


class Protocol(Section):
    """How to judge: a report states its name and version, so that two reports can be compared.

    Attributes:
        name: of the protocol.
        version: raised whenever its attacks change.
        attacks: in the order of the report's columns.
        extends: the protocol whose attacks come first among these; None where there is none.
        norm: of the ball, where the protocol is for one; else None.
        eps: radius in pixel units, where the protocol is for one; else None.
        sample: how many images to judge at most, drawn by class; None is all.
        output: which part of what a model returns has the logits; see `JudgeSettings`.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    name: Annotated[str, Field(min_length=1)]
    version: Count
    attacks: Annotated[tuple[Attack, ...], BeforeValidator(as_attacks)]
    extends: str | None = None
    norm: Norm | None = None
    eps: Pixels | None = None
    sample: Count | None = None
    output: Output = None

    def loaded(self) -> Self:
        """The protocol, with the code of your own attacks imported. This runs that code."""
        if not any(isinstance(attack, ImportedAttack) for attack in self.attacks):
            return self
        attacks = [attack.load() if isinstance(attack, ImportedAttack) else attack for attack in self.attacks]
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, "attacks": attacks})


def load_protocol(protocol: str | os.PathLike[str] | Protocol) -> Protocol:
    """A protocol by its name or from a file.

    Args:
        protocol: ``quick``, ``paper``, ``standard``; or a YAML file with ``name``, ``version`` and ``attacks``, and
            optionally ``extends`` (a protocol whose attacks come first), ``norm``, ``eps``, ``sample`` and ``output``.
            An attack is a name, such as ``PGD-40`` or ``art:DeepFool``, or ``{attack: PGD, steps: 40, restarts: 5}``.
            Your own code, ``package.module:Class``, is imported when an evaluation is set up, not here.

    Raises:
        InputError: there is none of that name, or the file is not a protocol; one line names the field.
    """
    if isinstance(protocol, Protocol):
        return protocol
    name = os.fspath(protocol)
    if name in PROTOCOLS:
        return _shipped(name)
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        cure = did_you_mean(name, PROTOCOLS, f"use {', '.join(PROTOCOLS)} or a .yaml file")
        raise InputError(f"protocol={name!r} is unknown{cure}")
    try:
        made = _parsed(parse_yaml(read_bytes(path, most=_MOST_BYTES)))
        if made.name in PROTOCOLS:
            raise InputError(f"name={made.name!r} is a protocol of the package; give this one another name")
    except ValueError as error:
        raise InputError(f"protocol={name!r}: {one_line(error)}") from None
    return made


@cache
def _shipped(name: str) -> Protocol:
    return _parsed(parse_yaml((_FILES / f"{name}.yaml").read_text(encoding="utf-8")))


def _parsed(content: Any) -> Protocol:
    if not isinstance(content, Mapping):
        raise InputError("is not a mapping; give name, version and attacks")
    given = {str(key): value for key, value in content.items()}
    fields: dict[str, Any] = {"name": None, "version": 1, "attacks": [], **given}
    if (base := fields.get("extends")) not in (None, *PROTOCOLS):
        raise InputError(f"extends={base!r} is unknown; use {', '.join(PROTOCOLS)}")
    if not isinstance(listed := fields["attacks"], list):
        raise InputError(f"attacks={listed!r} is not a list")
    inherited = () if base is None else _shipped(base).attacks
    fields["attacks"] = [*inherited, *(_attack(item, f"attacks.{i}") for i, item in enumerate(listed))]
    return Protocol(**fields)


def _attack(item: Any, field: str) -> Attack:
    options = {"attack": item} if isinstance(item, str) else item
    if not isinstance(options, Mapping) or "attack" not in options:
        raise InputError(f"{field}={item!r} is not an attack; give a name, or {{attack: NAME, ...}}")
    options = {str(key): value for key, value in options.items()}
    try:
        attack = make_attack(str(options.pop("attack")), options, from_file=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"{field}: {str(error).removeprefix('attacks: ')}") from None
    if attack.name == "AutoAttack" and not (isinstance(attack, AutoAttack) and attack.is_standard):
        raise InputError(f"{field}: name='AutoAttack' is the whole standard ensemble's; give this attack another name")
    return attack
