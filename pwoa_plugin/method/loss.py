"""`PwoALoss`: the objective as a plain loss, for training loops of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .._pixels import refuse_radius_of_other_pixels
from .._random import check_seed
from .._weights import is_weighted
from ..config import ADMMConfig, DistillationConfig, GradualConfig, HSICConfig, PerturbationConfig, fraction
from ..errors import InputError
from .batches import check_images, check_labels
from .compression import build_objective
from .distillation import frozen_copy
from .hidden import check_names, check_readable, find_hidden_layers
from .objective import PwoAObjective

__all__ = ["PwoALoss", "section"]

_CHECKED_CALLS = 100  # the first batches are looked at; later ones of the same loader are like them

Section = TypeVar("Section", DistillationConfig, PerturbationConfig, HSICConfig, ADMMConfig, GradualConfig)


class PwoALoss(nn.Module):
    """PwoA's loss of a student on natural images: distillation from a robust teacher, hidden features and HSIC;
    input gradients where ``distillation.gradient_weight`` is above 0.

    Called as ``loss(student, x, y)``; `terms` has the summands of the last call by name. No adversarial example is
    made: both networks see the same randomly perturbed images. The student may be any network with the teacher's
    classes: pruned, quantized, made narrower, or of another architecture. HSIC looks at the student's hidden layers
    alone; hidden features are compared in those of them that the teacher has, too, by name and width. Of the others
    the log tells; where there is none, the features' term is left out.

    The loss has no parameters; the teacher moves with ``loss.to(device)``, and is neither in ``state_dict()`` nor
    touched by ``train()``.

    Args:
        teacher: the robust network, images ``(N, C, H, W)`` to logits ``(N, classes)``; a frozen copy is kept.
        distillation, perturbation, hsic: sections of `PwoAConfig`, as objects or dicts.
        eps: radius of the attacks to resist, in pixel units, also as ``"8/255"``; sets the perturbation's radius.
        pixel_range: of a valid image.
        seed: of the search for the radius, where neither ``eps`` nor ``perturbation.radius`` is given.
        kept: where the student has some of the teacher's channels only: ``{hidden layer: (dimension of its input,
            indices that are left)}``, as `PwoAGroupPruner.inputs_left`. It is read at every call.

    Attributes:
        terms: ``{name: tensor}``, detached, weighted and signed.
        hidden_layers: names of the student's modules whose inputs are the T_j; known after the first call.
        radius: of the perturbation, in pixel units; known after the first call.
        use_hsic: whether HSIC's terms count at the moment; they are off in ADMM as published.

    Raises:
        ValueError: a section, ``eps`` or ``pixel_range`` cannot be used; one line says what to mend.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        distillation: DistillationConfig | Mapping[str, Any] | None = None,
        perturbation: PerturbationConfig | Mapping[str, Any] | None = None,
        hsic: HSICConfig | Mapping[str, Any] | None = None,
        eps: float | str | None = None,
        pixel_range: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
        kept: Mapping[str, tuple[int, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(teacher, nn.Module):
            raise InputError(f"teacher is a {type(teacher).__name__}; give a torch.nn.Module")
        eps = fraction(eps)
        if isinstance(eps, str):
            raise InputError(f"eps={eps!r} is no radius; give a number of pixel units, as 8/255")
        low, high = pixel_range
        if not low < high:
            raise InputError(f"pixel_range={pixel_range} is empty; give (low, high) with low < high")
        if eps is not None:
            if not 0 < eps < high - low:
                raise InputError(f"eps={eps:g} is outside (0, {high - low:g}); eps is in pixel units, as 8/255")
            refuse_radius_of_other_pixels(eps, pixel_range)
        self.distillation = section(DistillationConfig, distillation, "distillation")
        self.perturbation = section(PerturbationConfig, perturbation, "perturbation")
        self.hsic = section(HSICConfig, hsic, "hsic")
        self.eps, self.pixel_range, self.seed = eps, pixel_range, check_seed(seed)
        self._teacher = (frozen_copy(teacher),)  # in a tuple: no submodule
        self.kept: Mapping[str, tuple[int, Tensor]] = {} if kept is None else kept
        self.use_hsic = True
        self.radius: float | None = None
        self._objective: PwoAObjective | None = None
        self._seen: WeakKeyDictionary[nn.Module, tuple[list[str], set[str]]] = WeakKeyDictionary()
        self._calls = 0

    @property
    def teacher(self) -> nn.Module:
        """The frozen copy."""
        return self._teacher[0]

    @property
    def terms(self) -> dict[str, Tensor]:
        """Summands of the last call's loss, by name."""
        return self._objective.terms if self._objective else {}

    @property
    def hidden_layers(self) -> list[str]:
        """Names of the modules whose inputs are the T_j."""
        return self._objective.hidden_layers if self._objective else []

    @property
    def device(self) -> torch.device:
        """Where the teacher is, and so the student has to be."""
        return _device(self.teacher, torch.device("cpu"))

    def check_student(self, student: nn.Module) -> None:
        """Whether the student's hidden layers can be read, and those that are named are its modules; a call looks, too.

        Raises:
            ValueError: they cannot, or one is not.
        """
        if self._looks_inside:
            check_readable(student)
        if self.hsic.layers != "auto":
            check_names(student, self.hsic.layers)

    @property
    def _looks_inside(self) -> bool:
        return self.hsic.lambda_x > 0 or self.hsic.lambda_y > 0 or self.distillation.feature_weight > 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_seen"}  # it cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._seen = WeakKeyDictionary()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PwoALoss:
        self.teacher._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, student: nn.Module, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            student: the network that is trained, on the teacher's device; ``DistributedDataParallel`` around it is
                called as such.
            x: natural images ``(N, C, H, W)`` in ``pixel_range``, on any device.
            y: labels ``(N,)`` int64; needed only where ``hsic.lambda_y`` is above 0.

        Returns:
            A scalar.

        Raises:
            ValueError: images, labels, teacher or student cannot be used.
        """
        device = self.device
        if self.distillation.gradient_weight > 0 and getattr(student, "static_graph", False):
            raise InputError(
                f"distillation.gradient_weight={self.distillation.gradient_weight:g} does not go with "
                "DistributedDataParallel(static_graph=True), which would not average gradients; leave static_graph out"
            )
        if (other := _device(student, device)) != device:
            raise InputError(f"the student is on {other}, the teacher on {device}; call loss.to({str(other)!r})")
        if self._calls < _CHECKED_CALLS:
            check_images(x, self.pixel_range, "x")
        dtype = _dtype(student, x.dtype)
        teachers = _dtype(self.teacher, dtype)
        if teachers != dtype and not torch.is_autocast_enabled(device.type):
            raise InputError(f"the student is {dtype}, the teacher {teachers}; give both alike".replace("torch.", ""))
        x = x.to(device, dtype)
        if self._objective is None:
            self._objective = self._build(x)
        objective = self._objective
        if objective.needs_labels and y is None:
            raise InputError(f"y is missing, and hsic.lambda_y={self.hsic.lambda_y:g} needs labels; set it to 0")
        if y is not None and objective.needs_labels:
            if self._calls < _CHECKED_CALLS:
                check_labels(y, len(x), objective.classes, "y")
            y = y.to(device)
        self._calls += 1
        if self._looks_inside:
            if student not in self._seen:
                check_readable(student)
                self._seen[student] = self._hidden_layers_of(student, x[:2]), set()
            objective.hidden_layers, objective.not_alike = self._seen[student]
        objective.use_hsic, objective.kept = self.use_hsic, self.kept
        loss: Tensor = objective(student, x, y)
        return loss

    def _hidden_layers_of(self, student: nn.Module, images: Tensor) -> list[str]:
        has_none = self.hsic.layers == "auto" and sum(is_weighted(module) for module in student.modules()) < 2
        if has_none and self.hsic.lambda_x == self.hsic.lambda_y == 0:
            return []  # features alone are wanted, and are left out
        return find_hidden_layers(student, images, self.hsic.layers)

    def _build(self, x: Tensor) -> PwoAObjective:
        objective, self.radius = build_objective(
            self.teacher,
            x,
            distillation=self.distillation,
            perturbation=self.perturbation,
            hsic=self.hsic.model_copy(update={"layers": ()}),  # they are the student's, and looked for in it
            eps=self.eps,
            pixel_range=self.pixel_range,
            seed=self.seed,
        )
        return objective


def section(kind: type[Section], given: Section | Mapping[str, Any] | None, name: str) -> Section:
    """A section of `PwoAConfig`, given as such, as a dict, or left out.

    Raises:
        ValueError: it is something else, or has a field that cannot be used; one line names it after ``name``.
    """
    if given is None:
        return kind()
    if isinstance(given, Mapping):
        try:
            return kind(**given)
        except ValueError as error:
            raise InputError(f"{name}.{error}") from None
    if not isinstance(given, kind):
        raise InputError(f"{name} is a {type(given).__name__}; give a {kind.__name__} or a dict")
    return given


def _device(module: nn.Module, default: torch.device) -> torch.device:
    parameter = next(module.parameters(), None)
    return default if parameter is None else parameter.device


def _dtype(module: nn.Module, default: torch.dtype) -> torch.dtype:
    """Of the first weights that images meet, or the default where there are none of a floating dtype."""
    weights = (part.weight for part in module.modules() if is_weighted(part) and isinstance(part.weight, Tensor))
    return next((weight.dtype for weight in weights if weight.is_floating_point()), default)
