"""Any attack of ART's, and any class of your own that is an ART `EvasionAttack`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from itertools import count
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from art.attacks.attack import Attack as AnyARTAttack
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.estimators.classification.classifier import ClassGradientsMixin
from art.estimators.estimator import BaseEstimator, LossGradientsMixin
from scipy.special import softmax
from torch import Tensor

from ..._pixels import positive_pixels
from ..._text import did_you_mean
from ...errors import InputError
from ..estimator import twin_of
from .base import Attack, AttackSettings
from .described import json_ready, source_digest

_UNUSABLE: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("AdversarialPatch", "AdversarialPatchNumpy", "AdversarialPatchPyTorch", "AdversarialPatchTensorFlowV2"),
            "makes one patch, not an image for each image",
        ),
        **dict.fromkeys(
            ("FeatureAdversariesNumpy", "FeatureAdversariesPyTorch", "FeatureAdversariesTensorFlowV2"),
            "needs images to imitate, which an evaluation does not have",
        ),
        **dict.fromkeys(
            ("GRAPHITEBlackbox", "GRAPHITEWhiteboxPyTorch"), "needs masks and images of a target, to change road signs"
        ),
        **dict.fromkeys(("FrameSaliencyAttack", "OverTheAirFlickeringPyTorch"), "attacks classifiers of videos"),
        **dict.fromkeys(("OverloadPyTorch", "SNAL"), "attacks object detectors"),
        "LaserAttack": "draws laser beams, in no ball",
        "LowProFool": "attacks classifiers of tables",
        "MalwareGDTensorFlow": "attacks classifiers of programs",
        "ProjectedGradientDescentTensorFlowV2": "attacks networks of TensorFlow",
    }
)
"""Classes of ART's that cannot attack a classifier of images in a ball, with the reason."""

_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "SimBA": {"batch_size": 1},  # it takes no other
        "UniversalPerturbation": {"attacker_params": {"verbose": False}},
    }
)
"""Arguments of ART's classes in place of the evaluation's and of ART's own."""

_USE_GRADIENTS = frozenset({"AutoAttack", "UniversalPerturbation", "TargetedUniversalPerturbation"})
"""Classes of ART's that use gradients, though they do not require an estimator that has them."""

_TARGETED = frozenset({"TargetedUniversalPerturbation"})
"""Classes of ART's that always aim at a class."""

_SINGLE = frozenset({"ShadowAttack"})
"""Classes of ART's that take one image at a time."""

_OF_PROBABILITIES = frozenset({"SimBA", "VirtualAdversarialMethod"})
"""Classes of ART's that want probabilities where others take logits; they use no gradient."""

_RENAMED = {"attack_order": "schedule"}


class _Probabilities(PyTorchClassifier):
    """An estimator that predicts probabilities."""

    def predict(self, *args: Any, **kwargs: Any) -> np.ndarray:
        probabilities: np.ndarray = softmax(super().predict(*args, **kwargs), axis=1)
        return probabilities


class ARTAttack(Attack):
    """An attack of ART's on the network that is judged.

    What you do not give is the evaluation's (``eps``, ``norm``, ``batch_size``, ``eps_step``), ART's own otherwise;
    ``targeted`` is False, and ``verbose``. Where ``targeted=True`` is given, the attack aims at the likeliest wrong
    class. An image that the attack moves beyond the ball or out of the pixel range counts as not broken.

    Args:
        attack: a class that is an `EvasionAttack`; or an object of one, of which only the parameters that differ from
            its class's defaults are taken over. The object is not changed, and its estimator is not attacked.
        name: name of its column in the report. Default: the class's name.
        options: arguments of the class, without its estimator.

    Raises:
        InputError: the attack cannot judge a classifier of images, or has no such option; one line says which.
    """

    def __init__(self, attack: type[EvasionAttack] | EvasionAttack, /, *, name: str | None = None, **options: Any):
        kind: Any = attack if inspect.isclass(attack) else type(attack)
        if not issubclass(kind, EvasionAttack):
            raise InputError(f"attacks: {kind.__name__} is no evasion attack of ART; give a class of EvasionAttack")
        default = "ART-AutoAttack" if kind.__name__ == "AutoAttack" else kind.__name__
        super().__init__(name=default if name is None else name)
        if self.name == "AutoAttack":
            raise InputError("attacks: name='AutoAttack' is the whole standard ensemble's; give another name")
        self.kind: type[EvasionAttack] = kind
        self._is_named_by_class = name is None
        _, *parameters = inspect.signature(kind).parameters.values()  # the first is the estimator
        self._parameters = {each.name: each for each in parameters if each.kind is not each.VAR_POSITIONAL}
        self.options = options if inspect.isclass(attack) else {**self._options_of(attack), **options}
        self._check()
        for option in {"eps", "eps_step"} & self.options.keys():
            if isinstance(self.options[option], (str, int, float)):
                self.options[option] = positive_pixels(option, self.options[option])
        self.packages = self._packages()
        requirements = kind._estimator_requirements or ()
        flat = [each for some in requirements for each in (some if isinstance(some, tuple) else (some,))]
        uses_gradients = any(issubclass(each, (LossGradientsMixin, ClassGradientsMixin)) for each in flat)
        self.black_box = bool(flat) and not uses_gradients and not (self._is_arts and kind.__name__ in _USE_GRADIENTS)

    @property
    def _is_arts(self) -> bool:
        return self.kind.__module__.startswith("art.")

    @property
    def code(self) -> str:
        return f"{super().code} {source_digest(self.kind)}"

    def beside(self, others: Iterable[Attack]) -> ARTAttack:
        """This attack, or one like it with a number in its name, if another of its class has the same name."""
        names = {other.name: other for other in others}
        first = names.get(self.name)
        if not self._is_named_by_class or not isinstance(first, ARTAttack):
            return self
        alike = [each for each in names.values() if isinstance(each, ARTAttack) and each.kind is self.kind]
        if any(json_ready(each.options) == json_ready(self.options) for each in alike):
            return self
        number = next(i for i in count(2) if f"{self.name} ({i})" not in names)
        return ARTAttack(self.kind, name=f"{self.name} ({number})", **self.options)

    def _options_of(self, attack: EvasionAttack) -> dict[str, Any]:
        """The parameters of an object that differ from the defaults of its class."""
        found = {}
        for name, parameter in self._parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD or name == "summary_writer":
                continue
            names = (name, _RENAMED.get(name, name), f"_{name}")
            holders = (attack, getattr(attack, "_attack", None))
            values = (getattr(holder, each) for holder in holders for each in names if hasattr(holder, each))
            value = next(values, inspect.Parameter.empty)
            if value is inspect.Parameter.empty:
                raise InputError(
                    f"attacks: {self.name} does not keep its argument {name!r}; "
                    f"give the class and its options, as functools.partial({self.kind.__name__}, {name}=...)"
                )
            if not _same(value, parameter.default) and not _made_by(self.kind, value):
                found[name] = value
        return found

    def _check(self) -> None:
        """Refuse what cannot judge a classifier of images, and options that the class does not have."""
        kind: Any = self.kind
        name = kind.__name__
        if self._is_arts and name == "GeoDA" and not hasattr(np, "mat"):
            raise InputError("attacks: GeoDA of this ART calls np.mat, which numpy 2 does not have; leave it out")
        if self._is_arts and name in _UNUSABLE:
            raise InputError(f"attacks: {name} {_UNUSABLE[name]}; leave it out")
        if inspect.isabstract(kind):
            raise InputError(f"attacks: {name} is abstract; give a class that has generate")
        for some in kind._estimator_requirements or ():
            any_of = some if isinstance(some, tuple) else (some,)
            if not any(issubclass(PyTorchClassifier, each) for each in any_of):
                needed = " or ".join(each.__name__ for each in any_of)
                raise InputError(
                    f"attacks: {name} needs an estimator of {needed}, which an image classifier has not; leave it out"
                )
        if not any(each.kind is each.VAR_KEYWORD for each in self._parameters.values()):
            for option in self.options:
                if option not in self._parameters:
                    hint = did_you_mean(option, self._parameters, f"it has {', '.join(self._parameters)}")
                    raise InputError(f"attacks: {name} has no option {option!r}{hint}")
        for option, value in self.options.items():
            inside = value if isinstance(value, (list, tuple)) else (value,)
            if any(isinstance(each, (AnyARTAttack, BaseEstimator)) for each in inside):
                raise InputError(
                    f"attacks: {name}: {option} is an attack on another network; give the class without it"
                )
        known = {*self.options, "eps", "norm", "batch_size", "eps_step", "targeted", "verbose"}
        named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        missing = [p.name for p in self._parameters.values() if p.default is p.empty and p.kind in named]
        if missing := [each for each in missing if each not in known]:
            raise InputError(f"attacks: {name} needs {', '.join(missing)}; give them as options")

    def _packages(self) -> tuple[str, ...]:
        """What ART imports for the class when it runs, as pip knows it."""
        name = self.kind.__name__
        if not self._is_arts:
            return ()
        if name in ("PixelAttack", "ThresholdAttack"):  # without CMA-ES they use scipy
            return ("cma",) if self.options.get("es", self._parameters["es"].default) == 0 else ()
        return {"CompositeAdversarialAttackPyTorch": ("kornia",), "AutoAttack": ("multiprocess",)}.get(name, ())

    def _arguments(self, settings: AttackSettings) -> dict[str, Any]:
        """All arguments of the class but the estimator."""
        named = {key: each for key, each in self._parameters.items() if each.kind is not each.VAR_KEYWORD}
        made = {key: each.default for key, each in named.items() if each.default is not each.empty}
        steps = self.options.get("max_iter", made.get("max_iter"))
        of_evaluation = {
            "eps": settings.eps,
            "norm": settings.art_norm,
            "eps_step": self._step_size(settings, steps),
            "batch_size": settings.batch_size,
            "targeted": False,
            "verbose": False,
        }
        for key, value in of_evaluation.items():
            # A default that is a text or None names something else: Wasserstein's norm, say.
            if key in named and isinstance(made.get(key, value), (int, float, np.number)):
                made[key] = value
        return made | (dict(_DEFAULTS.get(self.kind.__name__, {})) if self._is_arts else {}) | self.options

    def _step_size(self, settings: AttackSettings, steps: Any) -> float:
        if settings.step_size is not None:
            return settings.step_size
        given = self.options.get("eps")
        eps = given if isinstance(given, float) else settings.eps
        if self.kind.__name__.startswith(("Auto", "RescalingAuto")):
            return 2 * eps  # its authors' first step, which it halves
        return min(eps, 2.5 * eps / steps) if isinstance(steps, int) and steps > 0 else eps

    def parameters(self, settings: AttackSettings) -> dict[str, Any]:
        """The class, and its arguments but for those that the evaluation states: eps, norm and batch size."""
        stated = {"eps", "norm", "batch_size", "verbose"} - self.options.keys()
        made = {key: value for key, value in self._arguments(settings).items() if key not in stated}
        return {"class": f"{self.kind.__module__}.{self.kind.__qualname__}", **json_ready(made)}

    def check(self, estimator: PyTorchClassifier, settings: AttackSettings) -> None:
        with self._failures_named():
            self.build(estimator, settings)

    def build(self, estimator: PyTorchClassifier, settings: AttackSettings) -> EvasionAttack:
        if self._is_arts and self.kind.__name__ in _OF_PROBABILITIES:
            estimator = twin_of(estimator, _Probabilities)
        made: Any = self.kind(estimator, **self._arguments(settings))
        own = {key: value for key, value in self.options.items() if key in ("eps", "norm")}
        asked = {"eps": settings.eps, "norm": settings.art_norm}
        made.notes = tuple(
            f"{self.name} searches its own {key}={json_ready(value)}, not the evaluation's {json_ready(asked[key])}"
            for key, value in own.items()
            if json_ready(value) != json_ready(asked[key])
        )
        attack: EvasionAttack = made
        return attack

    def _batch(self, attack: EvasionAttack, images: np.ndarray, labels: np.ndarray) -> Tensor:
        if attack.targeted or (self._is_arts and self.kind.__name__ in _TARGETED):
            logits = attack.estimator.predict(images, batch_size=len(images))
            logits[np.arange(len(labels)), labels] = -np.inf
            labels = logits.argmax(1)
        if self._is_arts:
            labels = np.eye(attack.estimator.nb_classes, dtype=np.float32)[labels]  # not all take integers
        size = 1 if self._is_arts and self.kind.__name__ in _SINGLE else len(images)
        parts = [slice(start, start + size) for start in range(0, len(images), size)]
        return torch.cat([super(ARTAttack, self)._batch(attack, images[part], labels[part]) for part in parts])


def _made_by(kind: type, value: Any) -> bool:
    """Whether a value is a method of a class, or a function made in one: such a default is bound to its object."""
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    return inspect.isroutine(value) and any(name.startswith(f"{k.__module__}.{k.__qualname__}.") for k in kind.__mro__)


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a parameter are equal; arrays by value."""
    try:
        return bool(one is other or np.array_equal(one, other))
    except (TypeError, ValueError):
        return False
