"""The life of a run: ADMM or gradual pruning, hard prune, fine-tuning. The maths is in the files beside."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .._modes import modes_kept, train_mode
from .._random import seeded
from .._text import one_line
from ..errors import InputError, TrainingError
from .admm import ADMM, MasksOfAll, self_scaled_updates
from .allocation import LayerAllocation, allocation_table
from .batches import Batches
from .callback import Callback, Status
from .distillation import frozen_copy, gradient_loss
from .gradual import interval_of_cuts
from .hidden import check_names, check_readable, find_hidden_layers
from .hsic import ESTIMATORS
from .layout import channels_last_is_safe, lay_out, set_layout
from .logits import logits_of
from .objective import PwoAObjective
from .perturbation import largest_agreeing_radius, make_perturbation, radius_for
from .pruning import Masking, Pruning
from .state import State, StateError, admm_state, copy_into, optimizer_state, set_admm_state, set_optimizer_state

if TYPE_CHECKING:
    from ..config import (
        ADMMConfig,
        DistillationConfig,
        HSICConfig,
        OptimizerConfig,
        PerturbationConfig,
        PwoAConfig,
        ScheduleConfig,
    )

__all__ = ["Compression", "build_admm", "build_objective", "lr_factor", "restored_on_error"]

_logger = logging.getLogger(__name__)

_RADIUS_IMAGES = 512
_STEPS_BETWEEN_REPORTS = 10


class Compression:
    """PwoA on one model, by one config. What can be refused is refused here, before training.

    Args:
        model: the robust network, ``(N, C, H, W)`` images to ``(N, classes)`` logits. It is pruned in place.
        config: what to do.
        pruning: what is pruned and how; by masks unless given.

    Attributes:
        teacher: the frozen copy of the network as it was given.
        hidden_layers: names of the modules whose inputs HSIC and feature distillation look at.
        radius: of the perturbation, in pixel units.
        residual: ADMM's primal residual at its end; None without ADMM.
        history: a dict per epoch: phase, epoch, terms, lr, rho, residual, seconds.

    Raises:
        ValueError: the model, the data or the config cannot be used; one line says what to mend.
    """

    def __init__(self, model: nn.Module, config: PwoAConfig, pruning: Pruning | None = None) -> None:
        config = type(config)(**dict(config))  # once more: a section may have been changed since
        self.model, self.config = model, config
        self.pruning = pruning or Masking(model, config)
        self.device = torch.device(config.device) if config.device else next(model.parameters()).device
        check_readable(model)
        for name, parameter in model.named_parameters():
            if parameter.dtype == torch.float16:
                raise InputError(
                    f"{name} is float16, in which Adam's steps are no numbers; give the model in float32 "
                    "(model.float()) and say autocast='float16'"
                )
        self.teacher = frozen_copy(model).to(self.device)
        for name, layer in self.allocation.items():
            if layer.dense_because:
                _logger.warning("layer %s stays dense: %s", name, layer.dense_because)
        labels_because = None
        if config.hsic.lambda_y > 0:
            labels_because = f"hsic.lambda_y={config.hsic.lambda_y:g} needs them; give (x, y) batches or set it to 0"
        self.batches = Batches(
            config.train_loader,
            batch_size=config.batch_size,
            device=self.device,
            dtype=next(model.parameters()).dtype,
            pixel_range=config.pixel_range,
            labels_because=labels_because,
        )
        if config.hsic.layers != "auto":
            check_names(model, config.hsic.layers)
        self.residual: float | None = None
        self.history: list[dict[str, object]] = []
        self.hidden_layers: list[str] = []
        self.radius = 0.0
        self._training: _Training | None = None

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The layers to prune, by name."""
        return self.pruning.layers

    @property
    def allocation(self) -> dict[str, LayerAllocation]:
        """What each of them keeps, by the weights as they were given; after gradual pruning, by those it pruned."""
        return self.pruning.allocation

    @property
    def masks(self) -> dict[str, Tensor]:
        """``{layer: boolean mask}`` as of the last cut or the hard prune; empty where channels are removed."""
        return self.pruning.masks

    def _look(self) -> tuple[PwoAObjective, Tensor]:
        """Look at the data and at the model's answer to it: the objective that follows from both, and two images."""
        config = self.config
        perturbation = config.perturbation
        search = perturbation.kind != "none" and perturbation.radius is None and config.eps is None
        images = self.batches.first(_RADIUS_IMAGES if search else 2)
        if self.device.type == "cpu":
            _lay_out(self.model, self.teacher, images[:2])
        objective, self.radius = build_objective(
            self.teacher,
            images,
            distillation=config.distillation,
            perturbation=perturbation,
            hsic=config.hsic,
            eps=config.eps,
            pixel_range=config.pixel_range,
            seed=config.seed,
        )
        self.hidden_layers = objective.hidden_layers
        self.batches.classes = objective.classes
        return objective, images[:2]

    # -- training --------------------------------------------------------------------------------

    def run(self, callbacks: Sequence[Callback] = (), resume: State | None = None) -> dict[str, Tensor]:
        """Prune the model in place.

        Random state is the caller's: seed before (`PwoAPruner` does), also to resume.

        Args:
            callbacks: told of the progress.
            resume: what `state` gave in a run of the same model, data and config; that run is gone on with, and ends
                with the same bits as if it had never stopped (same machine, CPU).

        Returns:
            ``{layer: boolean mask}``; the model's weights are 0 exactly where a mask is. Empty where channels are
            removed instead.

        Raises:
            ValueError: data or model cannot be used, or the state is another run's.
            TrainingError: the loss is no number. In both cases, and when interrupted, the model is as it was.
        """
        if torch.is_inference_mode_enabled():
            raise InputError("torch.inference_mode is on, and its tensors cannot be trained; call this outside")
        self.residual, self.history, self._training = None, [], None
        with (
            torch.enable_grad(),
            restored_on_error(self.model, self.pruning.undo),
            _layout_kept(self.model, self.device),
        ):
            try:
                training = self._prepare(resume)
                status, config = training.status, self.config
                for callback in callbacks:
                    callback.on_start(status)
                while status.epoch < config.epochs:
                    self._turn_to(self._phase_of(status.epoch), training)
                    self._epoch(training, callbacks)
                if not self.pruning.done:
                    self._hard_prune(training)
                self._check_weights(training)
            finally:
                status_or_none = self._training.status if self._training else None
                for callback in callbacks:
                    callback.on_end(status_or_none)
                self._training = None
        self.pruning.settle()
        return self.masks

    def _prepare(self, resume: State | None) -> _Training:
        """All that training needs, at its first step or where a state left it."""
        config = self.config
        objective, images = self._look()
        when = " by the weights as they are now; it is made anew at each cut" if config.gradual_epochs else ""
        _logger.info("allocation%s\n%s", when, allocation_table(self.allocation))
        self.model.to(self.device)
        self.pruning.begin()
        train_mode(self.model)
        per_epoch = len(self.batches)
        dtype = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.autocast]
        self._training = training = _Training(
            objective=objective,
            images=images,
            parameters=self._parameters(),
            status=Status(
                phase=self._phase_of(0),
                epochs=config.epochs,
                steps=config.epochs * per_epoch,
            ),
            per_epoch=per_epoch,
            dtype=dtype,
            scaler=torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16),
        )
        if resume is not None:
            try:
                self._resume(training, resume)
            except (KeyError, TypeError, RuntimeError) as error:
                raise StateError(f"the saved state is incomplete ({error!r}); resume from another one") from error
        else:
            self._enter_phase(training)
        training.began = time.perf_counter() - training.status.seconds
        return training

    def _phases(self) -> dict[str, int | None]:
        config = self.config
        return {"admm": config.admm_epochs, "gradual": config.gradual_epochs, "interval": config.gradual.interval}

    def _phase_of(self, epoch: int) -> str:
        config = self.config
        if epoch < config.admm_epochs:
            return "admm"
        return "gradual" if epoch < config.admm_epochs + config.gradual_epochs else "fine-tune"

    def _turn_to(self, phase: str, training: _Training) -> None:
        """The hard prune comes before the first epoch of fine-tuning, whatever was before it."""
        status = training.status
        if phase == "fine-tune" and not self.pruning.done:
            self._hard_prune(training)
        if phase != status.phase or training.optimizer is None:
            was_admm = status.phase == "admm"
            if was_admm:
                training.after_admm = status.step
            self._note_residual(training)
            status.phase, status.rho, status.residual = phase, None, None
            self._enter_phase(training, anew=was_admm)

    def _enter_phase(self, training: _Training, *, anew: bool = True) -> None:
        """Optimizer, schedule and ADMM of the phase that begins, or that a state is in.

        Args:
            training: with its status set to the phase.
            anew: whether a phase with its own optimizer, if there is one, ended just now.
        """
        config, status = self.config, training.status
        in_admm = status.phase == "admm"
        admm_steps = config.admm_epochs * training.per_epoch
        own = config.admm.optimizer is not None and admm_steps > 0
        training.objective.use_hsic = config.admm.hsic if in_admm else True
        if in_admm or (own and anew) or training.optimizer is None:
            done = training.after_admm if own and not in_admm else 0
            training.optimizer, training.scheduler = self._optimizer(
                training.parameters,
                (config.admm.optimizer if own and in_admm else None) or config.optimizer,
                config.admm.schedule if own and in_admm else config.schedule,
                admm_steps if own and in_admm else max(1, status.steps - done),
                training.per_epoch,
                status.step - done,
            )
        training.admm = None
        if in_admm:
            weights, masks = self.pruning.admm_problem()
            training.admm, training.interval = build_admm(weights, masks, config.admm, admm_steps, training.per_epoch)

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _hard_prune(self, training: _Training) -> None:
        self._note_residual(training)
        self.pruning.prune(training.images, training.admm)
        training.admm = None  # a second look would be at masked weights
        self.pruning.hold()
        self._take_new_parameters(training)

    def _note_residual(self, training: _Training) -> None:
        if training.admm is not None:
            self.residual = training.admm.residual()
            _logger.info("primal residual |W - Z| / |W| at the end of ADMM: %.4f", self.residual)

    def _cut(self, training: _Training) -> None:
        """In the gradual phase, every so many steps."""
        steps = self.config.gradual_epochs * training.per_epoch
        done = training.status.step - training.after_admm
        if done % interval_of_cuts(self.config.gradual.interval, steps) == 0 and done < steps:
            self._check_weights(training)
            self.pruning.cut(done / steps)

    @staticmethod
    def _check_weights(training: _Training) -> None:
        if not all(parameter.isfinite().all() for parameter in training.parameters):
            raise TrainingError(f"a weight is not finite after step {training.status.step}; lower optimizer.lr")

    def _take_new_parameters(self, training: _Training) -> None:
        """Where the hard prune replaced the parameters, the next phase begins with an optimizer of theirs."""
        training.objective.kept = self.pruning.kept_inputs()
        parameters = self._parameters()
        if {*map(id, parameters)} != {*map(id, training.parameters)}:
            for parameter in training.parameters:
                parameter.grad = None
            training.parameters, training.optimizer = parameters, None
            if self.device.type == "cpu":
                _lay_out(self.model, self.teacher, training.images)

    @staticmethod
    def _optimizer(
        parameters: list[nn.Parameter],
        config: OptimizerConfig,
        schedule: ScheduleConfig,
        steps: int,
        per_epoch: int,
        done: int = 0,
    ) -> tuple[Optimizer, LambdaLR]:
        """An optimizer and its schedule over ``steps``, ``done`` of which are behind."""
        optimizer: Optimizer
        if config.name == "sgd":
            optimizer = torch.optim.SGD(
                parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
            )
        else:
            kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
            optimizer = kind(parameters, lr=config.lr, weight_decay=config.weight_decay)
        for group in optimizer.param_groups:
            group["initial_lr"] = config.lr
        # A scheduler begins with a step of its own, hence the - 1.
        return optimizer, LambdaLR(optimizer, partial(lr_factor, schedule, steps, per_epoch), last_epoch=done - 1)

    # -- state -----------------------------------------------------------------------------------

    def state(self) -> State:
        """Where the run stands, for `run` to resume from; to be asked by callbacks, between two steps.

        Raises:
            RuntimeError: no run goes on.
            TrainingError: a weight is not finite: there is no sense in going on from here.
        """
        training = self._training
        if training is None:
            raise RuntimeError("no run goes on; ask for the state in a callback")
        self._check_weights(training)
        status = training.status
        state = State(
            facts={
                "status": {field.name: getattr(status, field.name) for field in dataclasses.fields(status)}
                | {"terms": dict(status.terms), "seconds": time.perf_counter() - training.began},
                "batch": training.batch,
                "read": self.batches.read if training.batch else 0,
                "after_admm": training.after_admm,
                "phases": self._phases(),
                "radius": self.radius,
                "hidden_layers": self.hidden_layers,
                "residual": self.residual,
                "history": [dict(entry) for entry in self.history],
                "scaler": training.scaler.state_dict(),
            }
        )
        state.add("model", _tensors(self.model))
        if training.optimizer is not None:
            state.add("optimizer", optimizer_state(training.optimizer, training.parameters))
        self.pruning.save(state)
        state.add("sum", training.sums)
        state.add("random", self.batches.random_state())
        state.add("epoch_random", training.epoch_random)
        if training.admm is not None:
            tensors, state.facts["admm"] = admm_state(training.admm)
            state.add("admm", tensors)
        return state

    def _resume(self, training: _Training, state: State) -> None:
        facts, status = state.facts, training.status
        saved = Status(**facts["status"])
        if (saved.epochs, saved.steps) != (status.epochs, status.steps):
            raise StateError(
                f"the saved state is of a run of {saved.steps} steps in {saved.epochs} epochs, and this one has "
                f"{status.steps} in {status.epochs}; resume with the same data and config"
            )
        if facts["phases"] != self._phases():
            raise StateError(
                f"the saved state is of a run of other phases ({facts['phases']}) than this one ({self._phases()}); "
                "resume with the same config"
            )
        training.status, training.after_admm = saved, int(facts["after_admm"])
        self.pruning.resume(state)
        self._take_new_parameters(training)
        copy_into(_tensors(self.model), state.part("model"), "parameters or buffers")
        self._enter_phase(training)
        if training.optimizer is not None:
            set_optimizer_state(training.optimizer, training.parameters, state.part("optimizer"))
        if training.admm is not None:
            set_admm_state(training.admm, state.part("admm"), facts["admm"])
        if facts["scaler"]:
            training.scaler.load_state_dict(facts["scaler"])
        self.radius, self.residual, self.history = facts["radius"], facts["residual"], list(facts["history"])
        if facts["hidden_layers"] != self.hidden_layers:
            raise StateError("the saved state looks at other hidden layers; resume with the same model and config")
        if (perturbation := training.objective.perturbation) is not None:
            perturbation.radius = self.radius
        training.batch, training.read = int(facts["batch"]), int(facts["read"])
        training.sums = {name: total.to(self.device) for name, total in state.part("sum").items()}
        training.epoch_random = state.part("epoch_random")
        training.go_on_with = state.part("random")
        if not training.batch:
            self.batches.set_random_state(training.go_on_with)

    # -- an epoch --------------------------------------------------------------------------------

    def _batches_left(self, training: _Training) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The epoch's batches that are still to come.

        After a resume the source draws its order anew from the epoch's own random state, and so draws the same one.
        """
        skip, training.read = training.read, 0  # before the resume
        if skip:
            self.batches.set_random_state(training.epoch_random)
        else:
            training.epoch_random = self.batches.random_state()
        return self.batches.epoch(check=training.status.epoch == 0, start=skip, go_on_with=training.go_on_with)

    def _report(self, training: _Training, callbacks: Sequence[Callback]) -> None:
        status = training.status
        means = torch.stack(list(training.sums.values())).div(training.batch).tolist()
        status.terms = dict(zip(training.sums, means, strict=True))
        status.loss = math.fsum(means)
        if not math.isfinite(status.loss):
            bad = ", ".join(name for name, value in status.terms.items() if not math.isfinite(value))
            raise TrainingError(
                f"the loss is not finite at step {status.step} ({bad}); the model is as it was: lower optimizer.lr "
                f"(now {status.lr:.3g}) or the weight of that term"
            )
        for callback in callbacks:
            callback.on_report(status)

    def _epoch(self, training: _Training, callbacks: Sequence[Callback]) -> None:
        status, admm, scaler = training.status, training.admm, training.scaler
        optimizer, scheduler = training.optimizer, training.scheduler
        assert optimizer is not None
        assert scheduler is not None
        seen, started = 0, time.perf_counter()
        for x, y in self._batches_left(training):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, training.dtype, enabled=training.dtype is not None):
                loss = training.objective(self.model, x, y)
            scaler.scale(loss).backward()
            if admm is not None:
                scaler.unscale_(optimizer)
                admm.add_gradient()
            scaler.step(optimizer)
            scaler.update()
            status.lr = float(scheduler.get_last_lr()[0])
            scheduler.step()
            self.pruning.hold()
            status.step += 1
            training.batch += 1
            if status.phase == "gradual":
                self._cut(training)
            seen += len(x)
            if admm is not None:
                status.rho = admm.rho
                if status.step % training.interval == 0:
                    admm.dual_update()
                    status.residual = admm.residual()
            for name, term in training.objective.terms.items():
                training.sums[name] = training.sums[name] + term if name in training.sums else term
            status.seconds = time.perf_counter() - training.began
            status.images_per_second = seen / (time.perf_counter() - started)
            if training.batch % _STEPS_BETWEEN_REPORTS == 1:
                self._report(training, callbacks)
            for callback in callbacks:
                callback.on_step(status)
        if not training.batch:
            raise InputError("train_loader gave no batch this time; give one that can be read again at every epoch")
        self._report(training, callbacks)
        status.epoch += 1
        self.history.append(
            {
                "phase": status.phase,
                "epoch": status.epoch,
                "loss": status.loss,
                **status.terms,
                "lr": status.lr,
                "rho": status.rho,
                "residual": status.residual,
                "seconds": status.seconds,
            }
        )
        training.batch, training.sums = 0, {}
        for callback in callbacks:
            callback.on_epoch_end(status)


@dataclass
class _Training:
    """What changes while a run goes on.

    Attributes:
        images: two of them, ``(2, C, H, W)``, for what needs a forward.
        batch: batches done in this epoch.
        read: batches to leave out of the epoch that a resume begins in.
        after_admm: the step at which ADMM was over; where the data gives fewer batches than it says, not the planned.
        sums: of the loss's terms over this epoch.
        epoch_random: the random state at the start of this epoch.
        go_on_with: the random state of the step to resume at.
        began: on the clock, what was done before a resume counted in.
    """

    objective: PwoAObjective
    images: Tensor
    parameters: list[nn.Parameter]
    status: Status
    per_epoch: int
    dtype: torch.dtype | None
    scaler: torch.amp.GradScaler
    optimizer: Optimizer | None = None
    scheduler: LambdaLR | None = None
    admm: ADMM | None = None
    interval: int = 0
    batch: int = 0
    read: int = 0
    after_admm: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    epoch_random: dict[str, Tensor] = field(default_factory=dict)
    go_on_with: dict[str, Tensor] = field(default_factory=dict)
    began: float = 0.0


def build_objective(
    teacher: nn.Module,
    images: Tensor,
    *,
    distillation: DistillationConfig,
    perturbation: PerturbationConfig,
    hsic: HSICConfig,
    eps: float | None,
    pixel_range: tuple[float, float],
    seed: int = 0,
) -> tuple[PwoAObjective, float]:
    """The objective that a config asks for, once some images can be looked at.

    Args:
        teacher: the frozen network.
        images: ``(N, C, H, W)``; two are enough unless the perturbation's radius has to be found.
        distillation, perturbation, hsic, eps, pixel_range: see `PwoAConfig`.
        seed: of the search for the radius.

    Returns:
        The objective, and the perturbation's radius in pixel units.

    Raises:
        ValueError: the network does not answer with finite logits, changes its images in place, has no input gradients
            where they are wanted, or a hidden layer is not there.
    """
    asked = images[:2].clone()
    untouched = asked._version
    try:
        with torch.no_grad():
            logits = logits_of(teacher(asked))
    except (RuntimeError, IndexError) as error:
        reason = one_line(error)
        raise InputError(f"the model does not take images {tuple(images.shape[1:])} ({reason}); give others") from error
    if not isinstance(logits, Tensor):
        raise InputError(f"the model returns a {type(logits).__name__}; wrap it so that it returns logits (N, classes)")
    if logits.dim() != 2:
        raise InputError(f"the model returns a tensor {tuple(logits.shape)}; it must return logits (N, classes)")
    if not logits.isfinite().all():
        raise InputError("the model's logits are not finite before training; load a sound checkpoint")
    if asked._version != untouched:
        raise InputError(
            "the model changes the images that it is given in place, and student and teacher are given the same ones; "
            "write its first steps without in-place operations (x = x - mean, inplace=False)"
        )
    if distillation.gradient_weight > 0:
        _try_gradients(teacher, images[:2], distillation.gradient_weight)
    hidden_layers: list[str] = []
    if hsic.lambda_x > 0 or hsic.lambda_y > 0 or distillation.feature_weight > 0:
        hidden_layers = find_hidden_layers(teacher, images[:2], hsic.layers)
    if perturbation.kind == "none":
        radius = 0.0
    elif perturbation.radius is not None:
        radius = perturbation.radius
    elif eps is not None:
        radius = radius_for(eps, pixel_range)
    else:
        radius = largest_agreeing_radius(
            teacher,
            images,
            kind=perturbation.kind,
            pixel_range=pixel_range,
            agreement=perturbation.agreement,
            seed=seed,
        )
        _logger.info(
            "perturbation radius %.4g: the largest at which the teacher keeps %.0f %% of its predictions on %d images",
            radius,
            100 * perturbation.agreement,
            len(images),
        )
    objective = PwoAObjective(
        teacher,
        hidden_layers,
        alpha=distillation.alpha,
        temperature=distillation.temperature,
        feature_weight=distillation.feature_weight,
        gradient_weight=distillation.gradient_weight,
        gradient_share=distillation.gradient_share,
        lambda_x=hsic.lambda_x,
        lambda_y=hsic.lambda_y,
        sigma=hsic.sigma,
        estimator=ESTIMATORS[hsic.estimator],
        perturbation=make_perturbation(perturbation.kind, radius=radius, pixel_range=pixel_range),
    )
    objective.classes = logits.shape[1]
    return objective, radius


def _try_gradients(teacher: nn.Module, images: Tensor, weight: float) -> None:
    """Whether the network can be differentiated by its images and then by its weights; nothing is left of it.

    Raises:
        ValueError: it cannot.
    """
    student = copy.deepcopy(teacher)
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        with seeded(0), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            x = images.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
            gradient_loss(logits_of(student(x)), logits_of(teacher(x)), x).backward()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        reason = one_line(error)
        raise InputError(
            f"distillation.gradient_weight={weight:g} needs a network that can be differentiated twice ({reason}); set "
            "it to 0, or for attention train inside torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
        ) from error


def build_admm(
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Callable[[Tensor], Tensor]] | MasksOfAll,
    config: ADMMConfig,
    steps: int,
    per_epoch: int,
    interval: int | None = None,
) -> tuple[ADMM, int]:
    """The ADMM that a config asks for, and the steps between its dual updates.

    Args:
        weights, masks: see `ADMM`.
        config: what it says of rho, growth and interval; what it leaves out scales itself to ``steps``.
        steps: of the ADMM phase.
        per_epoch: steps of an epoch; used only where ``config.interval`` is given.
        interval: steps between dual updates, where another than the config says so.
    """
    if interval is None and config.interval:
        interval = config.interval * per_epoch
    interval, growth = self_scaled_updates(steps, rho=config.rho, rho_max=config.rho_max, interval=interval)
    admm = ADMM(
        weights,
        masks,
        rho=config.rho,
        growth=growth if config.growth is None else config.growth,
        rho_max=config.rho_max,
        rescale=config.rescale,
    )
    return admm, interval


def lr_factor(schedule: ScheduleConfig, steps: int, per_epoch: int, step: int) -> float:
    """The factor of the learning rate at ``step`` (from 0) of a phase of ``steps``."""
    epoch = step // per_epoch
    factor = 1.0
    if schedule.name == "cosine":
        factor = (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
    elif schedule.name == "linear":
        factor = max(0.0, 1 - step / steps)
    elif schedule.name == "multistep":
        factor = schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    elif schedule.name == "cycle":
        factor = schedule.factors[epoch % len(schedule.factors)]
    warmup = round(schedule.warmup * steps)
    return factor * (step + 1) / warmup if step < warmup else factor


@contextlib.contextmanager
def restored_on_error(model: nn.Module, undo: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Modes and gradients come back always; parameters and buffers, on their device, if the body raises.

    Args:
        model: the network.
        undo: gives it its structure back, before its values come back.
    """
    before = {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    with modes_kept(model):  # around the rest: `undo` brings the modes of its time back
        try:
            yield
        except BaseException:
            undo()
            with torch.no_grad():
                for name, tensor in _tensors(model).items():
                    if name in before:  # a quantizer makes buffers while it trains
                        tensor.data = before[name]
            raise
        finally:
            for parameter in model.parameters():
                gradient = gradients.get(parameter)  # None for a parameter that is new
                parameter.grad = gradient if gradient is None else gradient.to(parameter.device)


@contextlib.contextmanager
def _layout_kept(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Convolutions' weights lie afterwards as they did; on the CPU a run lays them out as is fastest."""
    if device.type != "cpu":
        yield
        return
    strides = {parameter: parameter.stride() for parameter in model.parameters() if parameter.dim() == 4}
    try:
        yield
    finally:
        for parameter in model.parameters():
            if parameter.dim() != 4:
                continue
            stride = strides.get(parameter)
            if stride is None:  # new
                parameter.data = parameter.data.contiguous()
            elif parameter.stride() != stride:
                as_before = torch.empty_strided(parameter.shape, stride, dtype=parameter.dtype, device=parameter.device)
                parameter.data = as_before.copy_(parameter.data)


def _lay_out(model: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    """Both alike, so that the hidden layers of one need no copy to be compared with the other's."""
    set_layout(model, lay_out(teacher, images, safe=channels_last_is_safe(model)))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())
