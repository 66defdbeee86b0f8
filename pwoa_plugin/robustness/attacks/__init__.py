"""The attacks, by name. A new one is one file here and one line in ``ATTACKS``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ..._text import did_you_mean
from ...errors import InputError
from .art_autoattack import ARTAutoAttack
from .autoattack import AutoAttack, StandardAutoAttack
from .base import NORMS, Attack, AttackRun, AttackSettings, positive_int
from .cw import CW, CarliniWagnerMargin
from .fgsm import FGSM
from .pgd import PGD

__all__ = [
    "ATTACKS",
    "CW",
    "FAMILIES",
    "FGSM",
    "NORMS",
    "PGD",
    "ARTAutoAttack",
    "Attack",
    "AttackRun",
    "AttackSettings",
    "AutoAttack",
    "CarliniWagnerMargin",
    "StandardAutoAttack",
    "make_attack",
    "positive_int",
]

ATTACKS: Mapping[str, Callable[[], Attack]] = MappingProxyType(
    {
        "FGSM": FGSM,
        "PGD-10": lambda: PGD(steps=10),
        "PGD-20": lambda: PGD(steps=20),
        "CW": CW,
        "PGD-20-T": lambda: PGD(steps=20, targets=_TARGETS),
        "AutoAttack": AutoAttack,
        "APGD-CE": lambda: AutoAttack(name="APGD-CE", parts=["apgd-ce"]),
        "APGD-T": lambda: AutoAttack(name="APGD-T", parts=["apgd-t"]),
        "FAB-T": lambda: AutoAttack(name="FAB-T", parts=["fab-t"]),
        "Square": lambda: AutoAttack(name="Square", parts=["square"]),
        "ART-AutoAttack": ARTAutoAttack,
    }
)
"""Every attack by the name of its column. ``PGD-<steps>`` and ``CW-<steps>`` are parsed for any number of steps, and
with ``-T`` behind them for the targeted attack."""

FAMILIES: Mapping[str, Callable[..., Attack]] = MappingProxyType(
    {"FGSM": FGSM, "PGD": PGD, "CW": CW, "AutoAttack": AutoAttack, "ART-AutoAttack": ARTAutoAttack}
)
"""Classes of attacks by their name in a protocol's file; their arguments there are the class's own."""

_TARGETS = 9  # the likeliest wrong classes; as many as the standard AutoAttack's


def make_attack(name: str) -> Attack:
    """The attack of that name, with the parameters that the papers use.

    Args:
        name: a key of ``ATTACKS``, or ``PGD-<steps>`` or ``CW-<steps>``, with ``-T`` behind it where targeted.

    Raises:
        InputError: no attack has that name.
    """
    if name in ATTACKS:
        return ATTACKS[name]()
    if found := re.fullmatch(r"(PGD|CW)-([1-9][0-9]{0,5})(-T)?", name):
        return FAMILIES[found[1]](steps=int(found[2]), targets=_TARGETS if found[3] else 0, name=name)
    cure = did_you_mean(name, ATTACKS, f"known are {', '.join(ATTACKS)} and PGD-<steps>[-T]", most=2)
    raise InputError(f"attacks: {name!r} is not a known attack{cure}")
