"""Attacks as a user writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import DeepFool
from art.estimators.classification import PyTorchClassifier
from art.estimators.estimator import BaseEstimator

from pwoa_plugin.robustness import Attack, AttackSettings


class Noise(EvasionAttack):
    """Adds a draw of a generator that nobody seeds, ``times`` eps wide."""

    attack_params = [*EvasionAttack.attack_params, "eps", "times"]  # noqa: RUF012
    _estimator_requirements = (BaseEstimator,)

    def __init__(self, estimator: Any, eps: float, times: float = 1.0) -> None:
        super().__init__(estimator=estimator)
        self.eps = eps
        self.times = times

    def generate(self, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any) -> np.ndarray:
        signs = np.random.default_rng().choice([-1, 1], size=x.shape)
        return np.clip(x + self.times * self.eps * signs, 0, 1)


class Broken(Noise):
    """Does what ``times`` says."""

    def generate(self, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any) -> np.ndarray:
        if self.times == 0:
            return x * np.nan
        if self.times == 1:
            return x + 1e-7 * (x == 1)  # rounding
        if self.times == 2:
            return x[:1]
        if self.times == 3:
            return x - 0.5 * self.eps
        raise IndexError("list index\nout of range")


class Least(Attack):
    """A subclass of `Attack` around an attack of least norm."""

    def __init__(self, *, steps: int = 20, name: str = "Least") -> None:
        super().__init__(name=name)
        self.steps = steps

    def parameters(self, settings: AttackSettings) -> dict[str, Any]:
        return {"steps": np.int64(self.steps)}

    def build(self, estimator: PyTorchClassifier, settings: AttackSettings) -> EvasionAttack:
        return DeepFool(estimator, max_iter=self.steps, batch_size=settings.batch_size, verbose=False)
