"""`PwoALoss`: distillation, hidden features, input gradients and HSIC in one loss; the only one that trains."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._data import as_images, as_labels, check_classes, check_first, scale_note
from .._devices import device_of, dtype_of
from .._logits import Output, check_output, logits_of
from .._modes import single_image_explained
from .._network import check_network, check_plain, check_trainable, naming_images
from .._pixels import as_pixel_range, check_radius, positive_pixels
from .._random import check_seed, happens
from .._section import as_section
from .._wrapped import hookable, unwrapped
from ..errors import InputError
from .adversarial import AdversarialConfig, gradient_of
from .distillation import DistillationConfig, distillation_loss, feature_loss, frozen_copy, gradient_loss
from .hidden import Forward, check_names, check_readable, find_hidden_layers, forward_with_hidden, unusable
from .hsic import HSICConfig, hsic_terms
from .layout import channels_last_is_safe
from .perturbation import Perturbation, PerturbationConfig, largest_agreeing_radius
from .probe import check_answer, find_classes, try_examples, try_input_gradients, try_training_mode
from .student import StudentLayers

_logger = logging.getLogger(__name__)

_CHECKED_CALLS = 100  # later batches of the same loader are like the first


class PwoALoss(nn.Module):
    """``alpha tau^2 KL(teacher || student) + lambda_x sum_j nHSIC(X, T_j) - lambda_y sum_j nHSIC(Y, T_j)``.

    PwoA's loss (arXiv 2210.04311, eq. 7) on natural images, with two terms of ours: hidden features, and input
    gradients if ``distillation.gradient_weight`` is above 0. Called as ``loss(student, x, y)``. It makes no adversarial
    examples unless ``adversarial`` is given: teacher and student see the same randomly perturbed images, in one forward
    each.

    The student may be any network with the teacher's classes: pruned, quantized, narrower, or of another architecture.
    HSIC uses the student's hidden layers alone. Hidden features are compared in the layers that the teacher has, too,
    by name and width; the others are logged. Without any, the term is left out.

    The loss has no parameters. The teacher moves with ``loss.to(device)``; it is not in ``state_dict()``, and
    ``train()`` does not affect it.

    Args:
        teacher: the robust network, images ``(N, C, H, W)`` to logits ``(N, classes)``; a frozen copy is kept.
        output: which part of what teacher and student return has the logits: an index, a key or an attribute. None: the
            one named ``logits``, or the only one that may be.
        distillation, perturbation, hsic: sections of `PwoAConfig`, as objects or dicts.
        adversarial: a section of `PwoAConfig`, too; None: no adversarial example is made. With its ``epochs``, call
            `attack_if_due` at each epoch of a loop of your own.
        eps: radius of the attacks to resist, in pixel units, also as ``"8/255"``; sets the perturbation's radius.
        pixel_range: ``(low, high)`` of a valid image.
        seed: of the steps that are drawn for HSIC, features and input gradients, and of the search for the radius if
            neither ``eps`` nor ``perturbation.radius`` is given.
        student_channels: if the student has only some of the teacher's channels: ``{hidden layer: (dimension of its
            input, indices that are left)}``, such as `PwoAGroupPruner.student_channels`. It is read at every call.
        kept: the old name of ``student_channels``.

    Attributes:
        terms: ``{name: tensor}``: summands of the last call's loss, detached, weighted and signed; 0 where a term was
            not drawn.
        classes: number of logits; None before the first call.
        radius: of the perturbation, in pixel units; None before the first call.
        hidden_layers: names of the last student's modules whose inputs are the T_j; empty before the first call.
        use_hsic: whether HSIC's terms are in the loss; the published ADMM turns them off.
        step: number of the next training call, by which the terms of a share of the steps are drawn; counted here. Set
            it before each call if several make one step.
        default_share: of the steps with HSIC and features, where their sections leave it open.
        network_forward: how networks run; `CompiledForward` in a run with ``compile``.
        attacking: whether adversarial examples take the place of the random perturbation; set it at any time.
        layers_field: where the user named hidden layers, for messages.

    Raises:
        InputError: a section, ``eps`` or ``pixel_range`` cannot be used.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        distillation: DistillationConfig | Mapping[str, Any] | None = None,
        perturbation: PerturbationConfig | Mapping[str, Any] | None = None,
        hsic: HSICConfig | Mapping[str, Any] | None = None,
        adversarial: AdversarialConfig | Mapping[str, Any] | None = None,
        eps: float | str | None = None,
        pixel_range: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
        output: Output = None,
        student_channels: Mapping[str, tuple[int, Tensor]] | None = None,
        kept: Mapping[str, tuple[int, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.eps = None if eps is None else positive_pixels("eps", eps)
        pixel_range = as_pixel_range(pixel_range)
        check_radius(self.eps, pixel_range)
        if kept is not None:
            warnings.warn("PwoALoss: kept= is now student_channels=", DeprecationWarning, stacklevel=2)
            student_channels = kept
        self.distillation = as_section(DistillationConfig, distillation, "distillation")
        self.perturbation = as_section(PerturbationConfig, perturbation, "perturbation")
        self.hsic = as_section(HSICConfig, hsic, "hsic")
        self.adversarial = None if adversarial is None else as_section(AdversarialConfig, adversarial, "adversarial")
        self._attack = None if self.adversarial is None else self.adversarial.make(self.eps, pixel_range)
        self.attacking = self.adversarial is not None and self.adversarial.epochs is None
        if (radius := self.perturbation.radius or 0.0) > pixel_range[1] - pixel_range[0]:
            raise InputError(f"perturbation.radius={radius:g} is wider than pixel_range={pixel_range}; use pixel units")
        self.pixel_range, self.seed = pixel_range, check_seed(seed)
        self.output = check_output(output)
        self.student_channels = {} if student_channels is None else student_channels
        check_plain(teacher, "teacher")
        self._teacher = (frozen_copy(teacher),)  # in a tuple, so that it is not a submodule
        self._names_in_teacher = {name for name, _ in unwrapped(self.teacher).named_modules()}
        self._estimator = self.hsic.make_estimator()
        self._perturb: Perturbation | None = None
        self.use_hsic = True
        self.network_forward: Forward = forward_with_hidden
        self.layers_field = "hsic.layers"
        self.terms: dict[str, Tensor] = {}
        self.classes: int | None = None
        self.radius: float | None = None
        self.hidden_layers: list[str] = []
        self._calls, self.step, self.default_share = 0, 0, 1.0
        self._students: WeakKeyDictionary[nn.Module, StudentLayers] = WeakKeyDictionary()

    @property
    def teacher(self) -> nn.Module:
        """The frozen copy."""
        return self._teacher[0]

    def hidden_layers_of(self, student: nn.Module) -> list[str]:
        """The hidden layers of one student; empty before `prepare`."""
        known = self._students.get(unwrapped(student))
        return [] if known is None else known.layers

    @property
    def needs_labels(self) -> bool:
        """Whether a call needs ``y``: only for nHSIC(Y, T_j)."""
        return self.hsic.lambda_y > 0

    @property
    def reads_labels(self) -> bool:
        """Whether a call heeds ``y`` where it is given."""
        return self.needs_labels or (self.adversarial is not None and self.adversarial.reads_labels)

    @property
    def device(self) -> torch.device:
        """Of the teacher; the student must be there, too."""
        return device_of(self.teacher)

    @property
    def _looks_inside(self) -> bool:
        return self.hsic.wanted or self.distillation.feature_weight > 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_students"}  # cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._students = WeakKeyDictionary()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PwoALoss:
        self.teacher._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    # -- before training -------------------------------------------------------------------------

    def check_student(self, student: nn.Module) -> None:
        """InputError if hidden layers cannot be read, or named ones do not exist; the first call checks this, too."""
        if self._looks_inside:
            check_readable(hookable(student))
        if self.hsic.layers != "auto":
            check_names(student, self.hsic.layers)

    def prepare(self, student: nn.Module, images: Tensor) -> None:
        """Find classes, radius and hidden layers, and check that training is possible; the first call does so, too.

        Args:
            student: the network to train; it runs once in eval mode.
            images: ``(N, C, H, W)``, on the teacher's device: two, or `RADIUS_IMAGES` if the radius is not known.

        Raises:
            InputError: teacher, student or images cannot be used.
        """
        self._check_new(student)
        if self.classes is None:
            classes = find_classes(self.teacher, images, self.output)
            if self.distillation.gradient_weight > 0:
                try_input_gradients(self.teacher, images[:2], self.distillation.gradient_weight, self.output)
            if self.adversarial is not None:
                try_examples(self.teacher, images[:2], self.adversarial.attack, self.output)
            self.classes = classes
        if self._perturb is None:
            radius = self.perturbation.known_radius(self.eps, self.pixel_range)
            if radius is None:
                answers = partial(self.logits, self.teacher)
                radius = largest_agreeing_radius(
                    answers, images, self.perturbation, pixel_range=self.pixel_range, seed=self.seed
                )
                kept = 100 * self.perturbation.agreement
                _logger.info("perturbation radius %.4g, at which the teacher keeps %g %% of its answers", radius, kept)
            self.set_radius(radius)
        self._layers_of(student, images)

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """The logits ``(N, classes)`` of a network for images ``(N, C, H, W)``."""
        return logits_of(model(images), len(images), self.output)

    def attack_if_due(self, epochs_left: float) -> None:
        """Set `attacking` as ``adversarial`` says where so many epochs are left, the one to come included."""
        section = self.adversarial
        self.attacking = section is not None and (section.epochs is None or epochs_left <= section.epochs)

    def set_radius(self, radius: float) -> None:
        """Perturb by this radius, in pixel units."""
        self.radius = radius
        self._perturb = self.perturbation.make(radius, self.pixel_range)

    def _layers_of(self, student: nn.Module, images: Tensor) -> StudentLayers:
        network = unwrapped(student)
        if network not in self._students:
            layers: list[str] = []
            if self._looks_inside:
                check_readable(student)
                with naming_images(images):
                    layers = find_hidden_layers(student, images[:2], self.hsic.layers, field=self.layers_field)
                if not layers and (asked := self._asked_of_hidden_layers()):
                    raise InputError(
                        f"{', '.join(asked)}: the network has no hidden layer whose input can be used; leave it out, "
                        "or name such layers in hsic.layers"
                    )
            try_training_mode(student, images, self.output)
            self._students[network] = StudentLayers(layers)
        return self._students[network]

    # -- a batch ---------------------------------------------------------------------------------

    def forward(self, student: nn.Module, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The loss of a batch; the first hundred batches are checked.

        Args:
            student: the network to train, on the teacher's device, also in ``DistributedDataParallel``; what
                ``torch.compile`` made of it runs uncompiled where hidden layers are read.
            x: natural images ``(N, C, H, W)``, on any device: floats in ``pixel_range``, or uint8, which are scaled.
            y: labels, integers ``(N,)`` or one-hot; needed only if ``hsic.lambda_y`` is above 0.

        Returns:
            A scalar.

        Raises:
            InputError: images, labels, teacher or student cannot be used.
        """
        self._check_new(student)
        device = self.device
        if self._looks_inside:
            student = hookable(student)
        if self.distillation.gradient_weight > 0 and getattr(student, "static_graph", False):
            raise InputError(
                f"distillation.gradient_weight={self.distillation.gradient_weight:g} does not go with "
                "DistributedDataParallel(static_graph=True), which would not average gradients; leave static_graph out"
            )
        if (other := device_of(student, device)) != device:
            raise InputError(f"the student is on {other}, the teacher on {device}; call loss.to({str(other)!r})")
        check = self._calls < _CHECKED_CALLS
        if self._calls == 0 and (note := scale_note(x, self.pixel_range)):
            _logger.info("x: %s", note)
        x = as_images(x, self.pixel_range, "x", check=check)
        if self._calls == 0:
            check_first(x, self.pixel_range, "x")
        dtype, of_teacher = dtype_of(student), dtype_of(self.teacher)
        if of_teacher != dtype and not torch.is_autocast_enabled(device.type):
            raise InputError(f"the student is {dtype}, the teacher {of_teacher}; give both alike".replace("torch.", ""))
        x = x.to(device, dtype)
        self.prepare(student, x)
        if self.needs_labels and self.use_hsic and y is None:
            raise InputError(f"y is missing, and hsic.lambda_y={self.hsic.lambda_y:g} needs labels; set it to 0")
        if y is not None and self.reads_labels:
            labels = as_labels(y, len(x), "y", check=check)
            if check:
                check_classes(labels, self.classes, "y")
            y = labels.classes.to(device)
        else:
            y = None
        self._calls += 1
        with single_image_explained():
            value = self.of_checked(student, x, y)
        self.step += torch.is_grad_enabled()
        return value

    def of_checked(self, student: nn.Module, x: Tensor, y: Tensor | None = None) -> Tensor:
        """`forward` after `prepare`, without checks: ``x`` and ``y`` are on the teacher's device, in its dtype."""
        known = self._layers_of(student, x)
        layers = self.hidden_layers = known.layers
        if not x.is_contiguous() and x.device.type == "cpu" and not channels_last_is_safe(student):
            x = x.contiguous()
        attack = self._attack if self.attacking and torch.is_grad_enabled() else None
        if attack is not None and self.adversarial is not None:
            with torch.no_grad():
                labels = y if self.adversarial.classes == "labels" else None
                classes = self.logits(self.teacher, x).argmax(1) if labels is None else labels
            x = attack(x, gradient_of(partial(self.logits, unwrapped(student, adapters=False)), classes))
        elif self._perturb is not None:
            x = self._perturb(x)
        config = self.distillation
        hsic_share, feature_share = self._shares()
        wants_hsic, wants_features = self.use_hsic and self.hsic.wanted and len(x) > 1, config.feature_weight > 0
        with_hsic = wants_hsic and happens(hsic_share, self.seed, self.step, 0)
        with_features = wants_features and happens(feature_share, self.seed, self.step, 1)
        with_gradients = config.gradient_weight > 0 and torch.is_grad_enabled()
        with_gradients = with_gradients and happens(config.gradient_share, self.seed, self.step, 2)
        if with_gradients:
            x = x.detach().requires_grad_()
        # At first they are read for what can be used, whatever is drawn.
        compared = with_features or (wants_features and known.any_alike is None)
        in_teacher = [name for name in layers if compared and name in self._names_in_teacher]
        in_student = layers if compared or with_hsic or (wants_hsic and known.any_usable is None) else []
        target, teacher_hidden = None, dict[str, Tensor]()
        if config.alpha > 0 or compared or with_gradients:
            with torch.set_grad_enabled(with_gradients), _precise(x, with_gradients):
                target, teacher_hidden = self._answer(self.teacher, x, in_teacher)
        with _precise(x, with_gradients):
            logits, hidden = self._answer(student, x, in_student)
        check_answer(student, logits, self.classes)
        if in_student:
            hidden, unusable_ones = known.usable(hidden, len(x))
            if unusable_ones and self.hsic.layers != "auto":
                raise unusable(unusable_ones, f"{self.layers_field}, in training mode")
        zero = partial(torch.zeros, (), device=x.device)
        if target is None:  # 0 with a gradient, for steps in which no other term is drawn
            terms = {"distillation": 0 * logits.float().square().sum()}
        else:
            terms = {
                "distillation": distillation_loss(logits, target.detach(), alpha=config.alpha, temperature=config.tau)
            }
        if attack is not None and self.adversarial is not None and self.adversarial.weight > 0:
            terms["adversarial"] = self.adversarial.weight * F.cross_entropy(logits.float(), classes)
        if with_gradients and target is not None:
            terms["gradients"] = config.gradient_weight * gradient_loss(logits, target, x)
            teacher_hidden = {name: activations.detach() for name, activations in teacher_hidden.items()}
        elif config.gradient_weight > 0:  # in every call, for whoever reads or averages terms
            terms["gradients"] = zero()
        alike = known.alike(hidden, teacher_hidden, self.student_channels) if compared and layers else {}
        if with_features and alike:
            terms["features"] = config.feature_weight / feature_share * feature_loss(hidden, alike)
        elif wants_features and known.any_alike:
            terms["features"] = zero()
        if with_hsic and hidden:
            found = hsic_terms(self.hsic, self._estimator, x, y, list(hidden.values()), logits.shape[1])
            terms |= {name: term / hsic_share for name, term in found.items()}
        elif wants_hsic and known.any_usable:
            terms |= {name: zero() for name in self.hsic.weights(labels=y is not None)}
        self.terms = {name: term.detach() for name, term in terms.items()}
        return torch.stack(list(terms.values())).sum()

    def _answer(self, model: nn.Module, x: Tensor, layers: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits and hidden layers."""
        output, hidden = self.network_forward(model, x, layers)
        return logits_of(output, len(x), self.output), hidden

    def _shares(self) -> tuple[float, float]:
        """The shares of the steps with HSIC and with features; a call without gradients has all terms."""
        if not torch.is_grad_enabled():
            return 1.0, 1.0
        return self.hsic.share or self.default_share, self.distillation.feature_share or self.default_share

    def _asked_of_hidden_layers(self) -> list[str]:
        """The terms of hidden layers that were asked for: a weight is neither 0 nor the default."""
        found = []
        for section, mine in (("hsic", self.hsic), ("distillation", self.distillation)):
            default = type(mine)()
            for name in ("lambda_x", "lambda_y", "feature_weight"):
                value = getattr(mine, name, 0)
                if value > 0 and value != getattr(default, name):
                    found.append(f"{section}.{name}={value:g}")
        return found

    def _check_new(self, student: nn.Module) -> None:
        """Check a student at its first call; without gradients it is compared, not trained."""
        if not isinstance(student, nn.Module) or unwrapped(student) not in self._students:
            (check_trainable if torch.is_grad_enabled() else check_network)(student, "student")


def _precise(x: Tensor, wanted: bool) -> AbstractContextManager[object]:
    """Without autocast, whose rounding is as large as the differences of input gradients."""
    return torch.autocast(x.device.type, enabled=False) if wanted else nullcontext()
