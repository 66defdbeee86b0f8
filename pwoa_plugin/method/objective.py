"""PwoA's objective: distillation, hidden features, input gradients and HSIC, by name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ..errors import InputError
from .distillation import distillation_loss, feature_loss, gradient_loss
from .hidden import read_hidden, unwrapped
from .hsic import ESTIMATORS, HSICEstimator, gaussian_kernel, hsic, linear_kernel, one_hot
from .layout import channels_last_is_safe
from .logits import logits_of
from .perturbation import Perturbation

__all__ = ["PwoAObjective"]

_logger = logging.getLogger(__name__)


class PwoAObjective(nn.Module):
    """``alpha tau^2 KL(teacher || student) + lambda_x sum_j nHSIC(X, T_j) - lambda_y sum_j nHSIC(Y, T_j)``.

    PwoA, arXiv 2210.04311, eq. 7, on perturbed images, with optional terms for the hidden features and for the input
    gradients. Called as ``objective(student, x, y)``; the terms of the last call are in `terms`. One forward of each
    network a call.

    `use_hsic` switches HSIC's terms off and on; `classes` is the number of logits, where that is known. HSIC looks at
    the student alone. Hidden features are compared where the teacher has a layer of that name and width; `not_alike`
    names the layers where it had not. Where the student has some of the teacher's channels only, `kept` may say which:
    ``{hidden layer: (dimension, indices)}``.

    Args:
        teacher: frozen, in eval mode (see `frozen_copy`). It is no submodule: it takes no part in
            ``parameters()`` or ``train()``.
        hidden_layers: names of the student's modules whose inputs are the T_j.
        alpha, temperature: see `distillation_loss`.
        feature_weight: weight of `feature_loss`; 0 is off.
        gradient_weight: weight of `gradient_loss`; 0 is off. It is left out where gradients are not enabled. A call
            that has it is without autocast, whose rounding is as large as what the term is to find.
        gradient_share: share of the calls that have it, drawn at random from torch's global generator.
        lambda_x, lambda_y: weights of HSIC's terms; 0 is off.
        sigma, estimator: see `hsic`.
        perturbation: of the images that teacher, student and HSIC see; None is the paper's own setting.
    """

    def __init__(
        self,
        teacher: nn.Module,
        hidden_layers: Sequence[str] = (),
        *,
        alpha: float = 10.0,
        temperature: float = 30.0,
        feature_weight: float = 0.0,
        gradient_weight: float = 0.0,
        gradient_share: float = 0.5,
        lambda_x: float = 0.0,
        lambda_y: float = 0.0,
        sigma: float = 5.0,
        estimator: HSICEstimator | None = None,
        perturbation: Perturbation | None = None,
    ) -> None:
        super().__init__()
        self._teacher = (teacher,)
        self._names_in_teacher = {name for name, _ in unwrapped(teacher).named_modules()}
        self.hidden_layers = list(hidden_layers)
        self.alpha, self.temperature = alpha, temperature
        self.feature_weight = feature_weight
        self.gradient_weight, self.gradient_share = gradient_weight, gradient_share
        self.lambda_x, self.lambda_y = lambda_x, lambda_y
        self.sigma, self.estimator = sigma, estimator or ESTIMATORS["nhsic"]
        self.perturbation = perturbation
        self.use_hsic = True
        self.classes: int | None = None
        self.terms: dict[str, Tensor] = {}
        self.not_alike: set[str] = set()
        self.kept: Mapping[str, tuple[int, Tensor]] = {}

    @property
    def teacher(self) -> nn.Module:
        """The frozen network that the student is asked to agree with."""
        return self._teacher[0]

    @property
    def needs_labels(self) -> bool:
        """Whether a call needs ``y``: only for nHSIC(Y, T_j)."""
        return self.lambda_y > 0

    def forward(self, student: nn.Module, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            student: the network that is trained.
            x: natural images ``(N, C, H, W)``, in the perturbation's pixel range.
            y: labels ``(N,)`` int64; needed only where ``lambda_y`` is above 0.

        Returns:
            A scalar. `terms` holds its summands (detached, weighted, signed).

        Raises:
            ValueError: labels are needed and missing, or student and teacher know different classes.
        """
        with_hsic = self.use_hsic and (self.lambda_x > 0 or self.lambda_y > 0) and len(x) > 1
        if with_hsic and self.needs_labels and y is None:
            raise InputError("labels are missing and lambda_y is above 0; give (x, y) batches or set lambda_y=0")
        if self.perturbation is not None:
            x = self.perturbation(x)
        if not x.is_contiguous() and x.device.type == "cpu" and not channels_last_is_safe(student):
            x = x.contiguous()
        with_features = self.feature_weight > 0
        with_gradients = (
            self.gradient_weight > 0 and torch.is_grad_enabled() and torch.rand(()).item() < self.gradient_share
        )
        if with_gradients:
            x = x.detach().requires_grad_()
        in_teacher = [name for name in self.hidden_layers if name in self._names_in_teacher]
        with (
            torch.set_grad_enabled(with_gradients),
            _precise(x, with_gradients),
            _reading(self.teacher, in_teacher, with_features) as teacher_hidden,
        ):
            target = logits_of(self.teacher(x))
        with _precise(x, with_gradients), _reading(student, self.hidden_layers, with_features or with_hsic) as hidden:
            logits = logits_of(student(x))
        if logits.shape != target.shape:
            raise InputError(
                f"the student's logits are {tuple(logits.shape)}, the teacher's {tuple(target.shape)}; give a teacher "
                "of the same classes"
            )

        wanted = target.detach()
        terms = {"distillation": distillation_loss(logits, wanted, alpha=self.alpha, temperature=self.temperature)}
        if with_gradients:
            terms["gradients"] = self.gradient_weight * gradient_loss(logits, target, x)
            teacher_hidden = {name: activations.detach() for name, activations in teacher_hidden.items()}
        elif self.gradient_weight > 0:  # a term of every call, so that means over calls are of all of them
            terms["gradients"] = torch.zeros((), device=x.device)
        if with_features and (alike := self._alike(hidden, teacher_hidden)):
            terms["features"] = self.feature_weight * feature_loss(hidden, alike)
        if with_hsic:
            terms |= self._hsic_terms(x, y, list(hidden.values()), logits.shape[1])
        self.terms = {name: term.detach() for name, term in terms.items()}
        return torch.stack(list(terms.values())).sum()

    def _alike(self, hidden: dict[str, Tensor], teacher_hidden: dict[str, Tensor]) -> dict[str, Tensor]:
        """The teacher's hidden layers that the student has in the same shape; a pruned student may be narrower."""
        alike = {}
        for name, target in teacher_hidden.items():
            if name in self.kept and (name not in hidden or hidden[name].shape != target.shape):
                dim, indices = self.kept[name]
                target = target.index_select(dim, indices)
            if name in hidden and hidden[name].shape == target.shape:
                alike[name] = target
        if left_out := [name for name in self.hidden_layers if name not in alike and name not in self.not_alike]:
            _logger.warning(
                "no feature distillation of %s: the teacher has no such layer of that width", ", ".join(left_out)
            )
            self.not_alike.update(left_out)
        return alike

    def _hsic_terms(self, x: Tensor, y: Tensor | None, hidden: list[Tensor], classes: int) -> dict[str, Tensor]:
        references, weights = {}, {"hsic_x": self.lambda_x, "hsic_y": -self.lambda_y}
        if self.lambda_x > 0:
            references["hsic_x"] = gaussian_kernel(x, self.sigma)
        if self.lambda_y > 0 and y is not None:
            references["hsic_y"] = linear_kernel(one_hot(y, classes))
        values = hsic(list(references.values()), hidden, sigma=self.sigma, estimator=self.estimator).sum(1)
        return {name: weights[name] * value for name, value in zip(references, values, strict=True)}


def _precise(x: Tensor, wanted: bool) -> AbstractContextManager[object]:
    return torch.autocast(x.device.type, enabled=False) if wanted else nullcontext()


def _reading(model: nn.Module, layers: Sequence[str], wanted: bool) -> AbstractContextManager[dict[str, Tensor]]:
    return read_hidden(model, layers) if wanted else nullcontext({})
