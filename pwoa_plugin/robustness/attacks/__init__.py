"""The attacks, by name. A new one is one file here and one line in ``ATTACKS``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from ..._text import did_you_mean
from ...errors import InputError
from .art_autoattack import ARTAutoAttack
from .autoattack import AutoAttack, StandardAutoAttack
from .base import Attack, AttackRun, AttackSettings
from .cw import CW, CarliniWagnerMargin
from .fgsm import FGSM
from .pgd import PGD

__all__ = [
    "ATTACKS",
    "CW",
    "FGSM",
    "PGD",
    "ARTAutoAttack",
    "Attack",
    "AttackRun",
    "AttackSettings",
    "AutoAttack",
    "CarliniWagnerMargin",
    "StandardAutoAttack",
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


def make_attack(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> Attack:
    """The attack of that name, with the parameters that the papers use.

    Args:
        name: a key of ``ATTACKS``, or ``PGD-<steps>`` or ``CW-<steps>``, with ``-T`` behind it where targeted; ``PGD``
            alone where ``options`` have its steps.
        options: of the attack's class, in place of those that go with the name.

    Raises:
        InputError: no attack has that name, or an option is out of its range.
        TypeError: the class has no such option.
    """
    if name in ATTACKS:
        return ATTACKS[name](**options)
    if name == "PGD" and "steps" in options:
        return PGD(**options)
    if found := re.fullmatch(r"(PGD|CW)-([1-9][0-9]{0,5})(-T)?", name):
        kind = PGD if found[1] == "PGD" else CW
        by_name: dict[str, Any] = {"steps": int(found[2]), "targets": _N_TARGETS if found[3] else 0}
        return kind(**by_name | dict(options or {"name": name}))
    cure = did_you_mean(name, ATTACKS, f"known are {', '.join(ATTACKS)} and PGD-<steps>[-T]", most=2)
    raise InputError(f"attacks: {name!r} is not a known attack{cure}")
