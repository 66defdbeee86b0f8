"""The attacks, by name. A new one is one file here and one line in ``ATTACKS``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from ..._text import did_you_mean
from ...errors import InputError
from .art_attack import ARTAttack
from .art_autoattack import ARTAutoAttack
from .autoattack import AutoAttack, StandardAutoAttack
from .base import Attack, AttackRun, AttackSettings, Cost
from .cw import CW, CarliniWagnerMargin
from .fgsm import FGSM
from .own import AnyAttack, ImportedAttack, as_attack, imported, of_art, split_call
from .pgd import PGD

__all__ = [
    "ATTACKS",
    "CW",
    "FGSM",
    "PGD",
    "ARTAttack",
    "ARTAutoAttack",
    "AnyAttack",
    "Attack",
    "AttackRun",
    "AttackSettings",
    "AutoAttack",
    "CarliniWagnerMargin",
    "Cost",
    "ImportedAttack",
    "StandardAutoAttack",
    "any_attack",
    "make_attack",
]

_N_TARGETS = 9  # the likeliest wrong classes; as many as the standard AutoAttack's

ATTACKS: Mapping[str, Callable[..., Attack]] = MappingProxyType(
    {
        "FGSM": FGSM,
        "PGD-10": partial(PGD, steps=10),
        "PGD-20": partial(PGD, steps=20),
        "CW": CW,
        "PGD-20-T": partial(PGD, steps=20, targets=_N_TARGETS),
        "AutoAttack": AutoAttack,
        "APGD-CE": partial(AutoAttack, name="APGD-CE", parts=["apgd-ce"]),
        "APGD-T": partial(AutoAttack, name="APGD-T", parts=["apgd-t"]),
        "FAB-T": partial(AutoAttack, name="FAB-T", parts=["fab-t"]),
        "Square": partial(AutoAttack, name="Square", parts=["square"]),
        "ART-AutoAttack": ARTAutoAttack,
    }
)
"""Every attack by the name of its column; each takes the options of its class. ``PGD-<steps>`` and ``CW-<steps>`` are
parsed for any number of steps, and with ``-T`` behind them for the targeted attack."""


def any_attack(item: Any) -> Attack:
    """The attack that a user gave: a name, a class, an object, `functools.partial` of a class, or ``{"attack": any of
    these, option: value}``.

    Raises:
        InputError: it is none of these, or an option cannot be used.
    """
    options: dict[str, Any] = {}
    if isinstance(item, Mapping) and "attack" in item:
        options = {str(key): value for key, value in item.items() if key != "attack"}
        item = item["attack"]
    if not isinstance(item, str):
        return as_attack(item, options)
    try:
        return make_attack(item, options)
    except TypeError as error:
        raise InputError(f"attacks: {error}") from None


def make_attack(name: str, options: Mapping[str, Any] = MappingProxyType({}), *, from_file: bool = False) -> Attack:
    """The attack of that name, with the parameters that the papers use.

    Args:
        name: a key of ``ATTACKS``, or ``PGD-<steps>`` or ``CW-<steps>``, with ``-T`` behind it where targeted; ``PGD``
            alone where ``options`` have its steps. ``art:Class`` of `art.attacks.evasion`, or ``package.module:Class``
            of your own code, which is imported. Options may be in the name, as ``art:DeepFool(max_iter=50)``.
        options: of the attack's class, in place of those that go with the name.
        from_file: whether a file gives the name: your own code is imported only when the attack is to run.

    Raises:
        InputError: no attack has that name, or an option is out of its range.
        TypeError: the class has no such option.
    """
    name, in_name = split_call(name)
    options = {**in_name, **options}
    if name.startswith("art:"):
        return of_art(name.removeprefix("art:"), options)
    if ":" in name:
        return ImportedAttack(name, options) if from_file else imported(name, options)
    if name in ATTACKS:
        return ATTACKS[name](**options)
    if name == "PGD" and "steps" in options:
        return PGD(**options)
    if found := re.fullmatch(r"(PGD|CW)-([1-9][0-9]{0,5})(-T)?", name):
        kind = PGD if found[1] == "PGD" else CW
        by_name: dict[str, Any] = {"steps": int(found[2]), "targets": _N_TARGETS if found[3] else 0}
        return kind(**by_name | dict(options or {"name": name}))
    if found := re.fullmatch(r"(pgd|cw)[-_ ]?([1-9][0-9]{0,5})([-_ ]?t)?", name, re.IGNORECASE):
        meant = f"{found[1].upper()}-{found[2]}{'-T' if found[3] else ''}"
        raise InputError(f"attacks: {name!r} is not a known attack; did you mean {meant}?")
    cure = did_you_mean(name, ATTACKS, f"known are {', '.join(ATTACKS)} and PGD-<steps>[-T]", most=2)
    raise InputError(f"attacks: {name!r} is not a known attack{cure}")
