"""Robust accuracy of any classifier, judged through the adversarial-robustness-toolbox (ART).

>>> from pwoa_plugin.robustness import evaluate
>>> report = evaluate(model, loader, eps=8 / 255)  # doctest: +SKIP
>>> print(report)  # doctest: +SKIP
"""

from .alarm import Alarm
from .attacks import (
    ATTACKS,
    CW,
    FGSM,
    PGD,
    ARTAttack,
    ARTAutoAttack,
    Attack,
    AttackRun,
    AttackSettings,
    AutoAttack,
    CarliniWagnerMargin,
    Cost,
    StandardAutoAttack,
    make_attack,
)
from .comparing import compare
from .comparison import Comparison
from .curve import Curve, security_curve
from .estimator import make_estimator, undisturbed
from .evaluation import DEFAULT_ATTACKS, evaluate
from .protocol import PROTOCOLS, Protocol, load_protocol
from .report import AttackReport, Config, Report
from .settings import JudgeSettings
from .statistics import Paired

__all__ = [
    "ATTACKS",
    "CW",
    "DEFAULT_ATTACKS",
    "FGSM",
    "PGD",
    "PROTOCOLS",
    "ARTAttack",
    "ARTAutoAttack",
    "Alarm",
    "Attack",
    "AttackReport",
    "AttackRun",
    "AttackSettings",
    "AutoAttack",
    "CarliniWagnerMargin",
    "Comparison",
    "Config",
    "Cost",
    "Curve",
    "JudgeSettings",
    "Paired",
    "Protocol",
    "Report",
    "StandardAutoAttack",
    "compare",
    "evaluate",
    "load_protocol",
    "make_attack",
    "make_estimator",
    "security_curve",
    "undisturbed",
]
