"""The attacks, by name. A new one is one file here and one line in ``ATTACKS``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ...errors import InputError
from .art_autoattack import ARTAutoAttack
from .autoattack import AutoAttack, StandardAutoAttack
from .base import NORMS, Attack, AttackRun, AttackSettings
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
"""Every attack by the name of its column; ``PGD-<steps>`` and ``CW-<steps>`` parse for any number of steps, and with
``-T`` behind them for the targeted attack."""

FAMILIES: Mapping[str, Callable[..., Attack]] = MappingProxyType(
    {"FGSM": FGSM, "PGD": PGD, "CW": CW, "AutoAttack": AutoAttack, "ART-AutoAttack": ARTAutoAttack}
)
"""Classes of attacks by the name that a protocol's file has for them; their arguments are the class's own."""

_TARGETS = 9  # of the likeliest wrong classes, as the standard AutoAttack has it


def make_attack(name: str) -> Attack:
    """The attack of that name, with the parameters that the papers use.

    Args:
        name: a key of ``ATTACKS``, or ``PGD-<steps>`` or ``CW-<steps>``, with ``-T`` behind it where targeted.

    Raises:
        ValueError: no attack has that name.
    """
    if name in ATTACKS:
        return ATTACKS[name]()
    if found := re.fullmatch(r"(PGD|CW)-([1-9][0-9]{0,5})(-T)?", name):
        return FAMILIES[found[1]](steps=int(found[2]), targets=_TARGETS if found[3] else 0, name=name)
    by_lower = {known.lower(): known for known in ATTACKS}
    near = [by_lower[n] for n in difflib.get_close_matches(name.lower(), by_lower, n=2, cutoff=0.5)]
    cure = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(ATTACKS)} and PGD-<steps>[-T]"
    raise InputError(f"attacks: {name!r} is no known attack; {cure}")
