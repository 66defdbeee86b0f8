"""The life of a run: ADMM, hard prune, fine-tuning under the mask. The maths is in the files beside."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .admm import ADMM, self_scaled_updates
from .allocation import ALLOCATIONS, LayerAllocation, allocate, allocation_table
from .batches import Batches
from .callback import Callback, Status
from .distillation import frozen_copy
from .hidden import find_hidden_layers
from .hsic import ESTIMATORS
from .layers import prunable_layers, refuse_transposed
from .objective import PwoAObjective
from .perturbation import largest_agreeing_radius, make_perturbation
from .sparsity import make_sparsity_set

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

__all__ = ["Compression", "TrainingError", "build_admm", "build_objective", "lr_factor", "restored_on_error"]

_logger = logging.getLogger(__name__)

_RADIUS_IMAGES = 512
_STEPS_BETWEEN_REPORTS = 10


class TrainingError(RuntimeError):
    """Training went where it cannot go on; the model is as it was before."""


class Compression:
    """PwoA on one model, by one config. What can be refused is refused here, before training.

    Args:
        model: the robust network, ``(N, C, H, W)`` images to ``(N, classes)`` logits. It is pruned in place.
        config: what to do.

    Attributes:
        teacher: the frozen copy of the network as it was given.
        layers: the layers to prune, by name.
        allocation: what each keeps, computed from the teacher's weights.
        hidden_layers: names of the modules whose inputs HSIC and feature distillation look at.
        radius: of the perturbation, in pixel units.
        masks: ``{layer: boolean mask}`` after the hard prune.
        residual: ADMM's primal residual at the hard prune; None without ADMM.
        history: a dict per epoch: phase, epoch, terms, lr, rho, residual, seconds.

    Raises:
        ValueError: the model, the data or the config cannot be used; one line says what to mend.
    """

    def __init__(self, model: nn.Module, config: PwoAConfig) -> None:
        config = type(config)(**dict(config))  # once more: a section may have been changed since
        self.model, self.config = model, config
        self.layers = prunable_layers(model, config.include, config.exclude)
        self.sparsity_set = make_sparsity_set(config.granularity)
        refuse_transposed(self.layers, self.sparsity_set)
        self.device = torch.device(config.device) if config.device else next(model.parameters()).device
        self.teacher = frozen_copy(model).to(self.device)
        dense = {name: self.teacher.get_parameter(f"{name}.weight") for name in self.layers}
        # In a set with a fixed density (n:m) the total follows from the set.
        sparsity = config.sparsity if config.sparsity is not None else 1 - (self.sparsity_set.fixed_density or 0.0)
        self.allocation: dict[str, LayerAllocation] = allocate(
            dense, sparsity, self.sparsity_set, ALLOCATIONS[config.allocation]
        )
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
        self.masks: dict[str, Tensor] = {}
        self.residual: float | None = None
        self.history: list[dict[str, object]] = []
        self.hidden_layers: list[str] = []
        self.radius = 0.0

    def _look(self) -> PwoAObjective:
        """Look at the data and at the model's answer to it; the objective that follows from both."""
        config = self.config
        perturbation = config.perturbation
        search = perturbation.kind != "none" and perturbation.radius is None and config.eps is None
        images = self.batches.first(_RADIUS_IMAGES if search else 2)
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
        return objective

    # -- training --------------------------------------------------------------------------------

    def run(self, callbacks: Sequence[Callback] = ()) -> dict[str, Tensor]:
        """Prune the model in place.

        Random state is the caller's: seed before (`PwoAPruner` does).

        Args:
            callbacks: told of the progress.

        Returns:
            ``{layer: boolean mask}``; the model's weights are 0 exactly where a mask is.

        Raises:
            ValueError: data or model cannot be used.
            TrainingError: the loss is no number. In both cases, and when interrupted, the model is as it was.
        """
        self.masks, self.residual, self.history = {}, None, []
        status: Status | None = None
        with restored_on_error(self.model), _channels_last_on_cpu(self.model, self.teacher, self.device):
            try:
                objective = self._look()
                _logger.info("allocation\n%s", allocation_table(self.allocation))
                self.model.to(self.device)
                trained = [p for p in self.model.parameters() if p.requires_grad]
                frozen = [name for name in self.layers if not self._weight(name).requires_grad]
                if frozen:
                    raise ValueError(
                        f"{', '.join(frozen[:3])}: the weight has requires_grad=False; set it to True, or exclude "
                        "the layer"
                    )
                self.model.train()
                per_epoch, config = len(self.batches), self.config
                first = "admm" if config.admm_epochs else "fine-tune"
                status = Status(phase=first, epochs=config.epochs, steps=config.epochs * per_epoch)
                for callback in callbacks:
                    callback.on_start(status)
                started = time.perf_counter()
                admm_steps = config.admm_epochs * per_epoch
                own = config.admm.optimizer is not None and admm_steps > 0
                optimizer, scheduler = self._optimizer(
                    trained,
                    (config.admm.optimizer if own else None) or config.optimizer,
                    config.admm.schedule if own else config.schedule,
                    admm_steps if own else status.steps,
                    per_epoch,
                )
                dtype = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.autocast]
                scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
                step = partial(
                    self._epoch, objective, dtype, scaler, status=status, started=started, callbacks=callbacks
                )
                if config.admm_epochs:
                    objective.use_hsic = config.admm.hsic
                    weights = {name: self._weight(name) for name in self.layers}
                    masks = {name: self.mask_of(name) for name in self.layers}
                    admm, interval = build_admm(weights, masks, config.admm, admm_steps, per_epoch)
                    for _ in range(config.admm_epochs):
                        step(optimizer, scheduler, admm=admm, interval=interval)
                    self.residual = admm.residual()
                    _logger.info("primal residual |W - Z| / |W| at the hard prune: %.4f", self.residual)
                objective.use_hsic = True
                self._hard_prune()
                status.phase, status.rho, status.residual = "fine-tune", None, None
                if own:
                    left = status.steps - admm_steps
                    optimizer, scheduler = self._optimizer(trained, config.optimizer, config.schedule, left, per_epoch)
                for _ in range(config.epochs - config.admm_epochs):
                    step(optimizer, scheduler)
                if not all(parameter.isfinite().all() for parameter in trained):
                    raise TrainingError("a weight is not finite after the last step; lower optimizer.lr")
            finally:
                for callback in callbacks:
                    callback.on_end(status)
        return self.masks

    def _weight(self, name: str) -> nn.Parameter:
        return self.layers[name].get_parameter("weight")

    def mask_of(self, name: str) -> Callable[[Tensor], Tensor]:
        return partial(self.allocation[name].mask, self.sparsity_set)

    @torch.no_grad()
    def _hard_prune(self) -> None:
        for name in self.layers:
            weight = self._weight(name)
            self.masks[name] = self.mask_of(name)(weight)
            weight.mul_(self.masks[name])

    @staticmethod
    def _optimizer(
        parameters: list[nn.Parameter], config: OptimizerConfig, schedule: ScheduleConfig, steps: int, per_epoch: int
    ) -> tuple[Optimizer, LambdaLR]:
        optimizer: Optimizer
        if config.name == "sgd":
            optimizer = torch.optim.SGD(
                parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
            )
        else:
            kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
            optimizer = kind(parameters, lr=config.lr, weight_decay=config.weight_decay)
        return optimizer, LambdaLR(optimizer, partial(lr_factor, schedule, steps, per_epoch))

    def _epoch(
        self,
        objective: PwoAObjective,
        dtype: torch.dtype | None,
        scaler: torch.amp.GradScaler,
        optimizer: Optimizer,
        scheduler: LambdaLR,
        *,
        status: Status,
        started: float,
        callbacks: Sequence[Callback],
        admm: ADMM | None = None,
        interval: int = 0,
    ) -> None:
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        images = steps = 0
        began = time.perf_counter()
        weights = {name: self._weight(name) for name in self.masks}

        def report() -> None:
            means = torch.stack(list(sums.values())).div(steps).tolist()
            status.terms = dict(zip(sums, means, strict=True))
            status.loss = math.fsum(means)
            status.images_per_second = images / (time.perf_counter() - began)
            if not math.isfinite(status.loss):
                bad = ", ".join(name for name, value in status.terms.items() if not math.isfinite(value))
                raise TrainingError(
                    f"the loss is not finite at step {status.step} ({bad}); the model is as it was: lower optimizer.lr "
                    f"(now {status.lr:.3g}) or the weight of that term"
                )
            for callback in callbacks:
                callback.on_step(status)

        for x, y in self.batches.epoch(check=status.epoch == 0):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                loss = objective(self.model, x, y)
            scaler.scale(loss).backward()
            if admm is not None:
                scaler.unscale_(optimizer)
                admm.add_gradient()
            scaler.step(optimizer)
            scaler.update()
            status.lr = float(scheduler.get_last_lr()[0])
            scheduler.step()
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.mul_(self.masks[name])
            status.step += 1
            steps += 1
            images += len(x)
            if admm is not None:
                status.rho = admm.rho
                if status.step % interval == 0:
                    admm.dual_update()
                    status.residual = admm.residual()
            for name, term in objective.terms.items():
                sums[name] += term
            if steps % _STEPS_BETWEEN_REPORTS == 1:
                report()
        if not steps:
            raise ValueError("train_loader gave no batch this time; give one that can be read again at every epoch")
        report()
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
                "seconds": time.perf_counter() - started,
            }
        )
        for callback in callbacks:
            callback.on_epoch_end(status)


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
        ValueError: the network does not answer with finite logits, or a hidden layer is not there.
    """
    with torch.no_grad():
        logits = teacher(images[:2])
    if not isinstance(logits, Tensor):
        raise ValueError(f"the model returns a {type(logits).__name__}; wrap it so that it returns logits (N, classes)")
    if logits.dim() != 2:
        raise ValueError(f"the model returns a tensor {tuple(logits.shape)}; it must return logits (N, classes)")
    if not logits.isfinite().all():
        raise ValueError("the model's logits are not finite before training; load a sound checkpoint")
    hidden_layers: list[str] = []
    if hsic.lambda_x > 0 or hsic.lambda_y > 0 or distillation.feature_weight > 0:
        hidden_layers = find_hidden_layers(teacher, images[:2], hsic.layers)
    if perturbation.kind == "none":
        radius = 0.0
    elif perturbation.radius is not None:
        radius = perturbation.radius
    elif eps is not None:
        radius = 1.5 * eps
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
        lambda_x=hsic.lambda_x,
        lambda_y=hsic.lambda_y,
        sigma=hsic.sigma,
        estimator=ESTIMATORS[hsic.estimator],
        perturbation=make_perturbation(perturbation.kind, radius=radius, pixel_range=pixel_range),
    )
    objective.classes = logits.shape[1]
    return objective, radius


def build_admm(
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Callable[[Tensor], Tensor]],
    config: ADMMConfig,
    steps: int,
    per_epoch: int,
) -> tuple[ADMM, int]:
    """The ADMM that a config asks for, and the steps between its dual updates.

    Args:
        weights, masks: see `ADMM`.
        config: what it says of rho, growth and interval; what it leaves out scales itself to ``steps``.
        steps: of the ADMM phase.
        per_epoch: steps of an epoch; used only where ``config.interval`` is given.
    """
    interval = config.interval * per_epoch if config.interval else None
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
def restored_on_error(model: nn.Module) -> Iterator[None]:
    """Modes and gradients come back always; parameters and buffers, on their device, if the body raises."""
    modes = {module: module.training for module in model.modules()}
    before = {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for name, tensor in _tensors(model).items():
                tensor.data = before[name]
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, gradient in gradients.items():
            parameter.grad = gradient if gradient is None else gradient.to(parameter.device)


@contextlib.contextmanager
def _channels_last_on_cpu(model: nn.Module, teacher: nn.Module, device: torch.device) -> Iterator[None]:
    """Convolutions' weights channels last for a run on the CPU (1.5 times as fast there); then as they were."""
    if device.type != "cpu":
        yield
        return
    strides = {parameter: parameter.stride() for parameter in model.parameters() if parameter.dim() == 4}
    for parameter in (*strides, *(p for p in teacher.parameters() if p.dim() == 4)):
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter, stride in strides.items():
            if parameter.stride() != stride:
                as_before = torch.empty_strided(parameter.shape, stride, dtype=parameter.dtype, device=parameter.device)
                parameter.data = as_before.copy_(parameter.data)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())
