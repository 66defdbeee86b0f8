"""The attacks, by name. A new one is one file here and one line in ``ATTACKS``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

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

ATTACKS: Mapping[str, Callable[[], Attack]] = MappingProxyType(
    {
        "FGSM": FGSM,
        "PGD-10": lambda: PGD(steps=10),
        "PGD-20": lambda: PGD(steps=20),
        "CW": CW,
        "AutoAttack": AutoAttack,
        "ART-AutoAttack": ARTAutoAttack,
    }
)
"""Every attack by the name of its column; ``PGD-<steps>`` parses for any number of steps."""


def make_attack(name: str) -> Attack:
    """The attack of that name, with the parameters that the papers use.

    Args:
        name: a key of ``ATTACKS``, or ``PGD-<steps>``.

    Raises:
        ValueError: no attack has that name.
    """
    if name in ATTACKS:
        return ATTACKS[name]()
    if pgd := re.fullmatch(r"PGD-([1-9][0-9]*)", name):
        return PGD(steps=int(pgd[1]))
    by_lower = {known.lower(): known for known in ATTACKS}
    near = [by_lower[n] for n in difflib.get_close_matches(name.lower(), by_lower, n=2, cutoff=0.5)]
    cure = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(ATTACKS)} and PGD-<steps>"
    raise ValueError(f"attacks: {name!r} is no known attack; {cure}")
