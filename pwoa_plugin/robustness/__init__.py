"""Robust accuracy of any classifier, judged through the adversarial-robustness-toolbox (ART).

>>> from pwoa_plugin.robustness import evaluate
>>> report = evaluate(model, loader, eps=8 / 255)  # doctest: +SKIP
>>> print(report)  # doctest: +SKIP
"""

from .attacks import (
    ATTACKS,
    CW,
    FGSM,
    PGD,
    ARTAutoAttack,
    Attack,
    AttackRun,
    AttackSettings,
    AutoAttack,
    CarliniWagnerMargin,
    StandardAutoAttack,
    make_attack,
)
from .estimator import make_estimator, undisturbed
from .protocol import DEFAULT_ATTACKS, evaluate
from .report import AttackReport, Config, Report

__all__ = [
    "ATTACKS",
    "CW",
    "DEFAULT_ATTACKS",
    "FGSM",
    "PGD",
    "ARTAutoAttack",
    "Attack",
    "AttackReport",
    "AttackRun",
    "AttackSettings",
    "AutoAttack",
    "CarliniWagnerMargin",
    "Config",
    "Report",
    "StandardAutoAttack",
    "evaluate",
    "make_attack",
    "make_estimator",
    "undisturbed",
]
