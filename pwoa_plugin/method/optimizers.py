"""The optimizer of the weights, and the schedule of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .._section import Section, key_of
from ..errors import InputError
from .snapshot import Snapshot, StateError

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], Any], Optimizer]] = {
    "adam": lambda parameters, config: Adam(parameters, lr=config.lr, weight_decay=config.weight_decay),
    "adamw": lambda parameters, config: AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay),
    "sgd": lambda parameters, config: SGD(
        parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    ),
}

#: Factor of the learning rate, by the schedule's config, the share of steps done, and the epoch.
SCHEDULES: dict[str, Callable[[Any, float, int], float]] = {
    "constant": lambda config, progress, epoch: 1.0,
    "cosine": lambda config, progress, epoch: (1 + math.cos(math.pi * min(1.0, progress))) / 2,
    "linear": lambda config, progress, epoch: max(0.0, 1 - progress),
    "multistep": lambda config, progress, epoch: float(config.gamma ** sum(epoch >= at for at in config.milestones)),
    "cycle": lambda config, progress, epoch: float(config.factors[epoch % len(config.factors)]),
}


_MOST_LR = 1e30  # Adam divides it by small numbers, and it must stay a float32


class OptimizerConfig(Section):
    """The optimizer of the weights.

    Attributes:
        name: ``adam``, ``adamw`` or ``sgd``.
        lr: learning rate. 3e-3 was chosen on MNIST, where 1e-2 kept more beyond 33x; on the study's CIFAR-10 network
            1e-3 kept as much or more (docs/results.md).
        momentum: of ``sgd`` only.
        weight_decay: L2 penalty (decoupled in ``adamw``).
    """

    name: Annotated[str, key_of(OPTIMIZERS)] = "adam"
    lr: float = Field(default=3e-3, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _check_lr(self) -> Self:
        if self.name != "sgd" and self.lr > _MOST_LR:
            raise InputError(f"lr={self.lr:g} is too large for {self.name}; give at most {_MOST_LR:g}")
        return self


class ScheduleConfig(Section):
    """The learning rate over a phase, as a factor of the optimizer's ``lr``.

    Attributes:
        name: ``constant``; ``cosine`` or ``linear`` (per step, from 1 to 0); ``multistep`` (times ``gamma`` at each
            of ``milestones``); ``cycle`` (``factors`` by epoch, repeated: the published ADMM).
        milestones: epochs of ``multistep``, counted from 0.
        gamma: factor of ``multistep``.
        factors: factors of ``cycle``.
        warmup: share of the phase's steps in which the factor rises linearly from 0 to the schedule's.
    """

    name: Annotated[str, key_of(SCHEDULES)] = "cosine"
    milestones: tuple[Annotated[int, Field(ge=0)], ...] = ()
    gamma: float = Field(default=0.1, gt=0)
    factors: tuple[float, ...] = (1.0, 0.1, 0.01)
    warmup: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _complete(self) -> ScheduleConfig:
        if self.name == "multistep" and not self.milestones:
            raise InputError("milestones is empty; name the epochs at which `multistep` drops the rate")
        if self.name == "cycle" and not self.factors:
            raise InputError("factors is empty; name the factors that `cycle` repeats")
        return self


def lr_factor(schedule: ScheduleConfig, steps: int, per_epoch: int, step: int) -> float:
    """The factor of the learning rate at ``step`` (from 0) of ``steps``."""
    factor = SCHEDULES[schedule.name](schedule, step / steps, step // per_epoch)
    warmup = round(schedule.warmup * steps)
    return factor * (step + 1) / warmup if step < warmup else factor


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class ScheduledOptimizer:
    """An optimizer and its learning rate schedule of ``steps`` steps, which begins after ``done`` of them."""

    def __init__(
        self,
        parameters: list[nn.Parameter],
        config: OptimizerConfig,
        schedule: ScheduleConfig,
        *,
        steps: int,
        per_epoch: int,
        done: int = 0,
    ) -> None:
        self.parameters = parameters
        self.optimizer = OPTIMIZERS[config.name](parameters, config)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = config.lr
        factor = partial(lr_factor, schedule, max(1, steps), per_epoch)
        # A scheduler begins with a step of its own, hence the - 1.
        self._scheduler = LambdaLR(self.optimizer, factor, last_epoch=done - 1)

    def next_lr(self) -> float:
        """The rate of the step just done; sets the next step's."""
        lr = float(self._scheduler.get_last_lr()[0])
        self._scheduler.step()
        return lr

    def state(self) -> Snapshot:
        """The optimizer's tensors (moments, momentum, counts), by the index of their parameter."""
        return Snapshot(
            {
                f"{i}.{key}": value
                for i, parameter in enumerate(self.parameters)
                for key, value in self.optimizer.state.get(parameter, {}).items()
                if isinstance(value, Tensor)
            }
        )

    def load_state(self, saved: Snapshot) -> None:
        """Restore what `state` returned; StateError if a tensor fits no parameter."""
        for name, value in saved.tensors.items():
            index, _, key = name.partition(".")
            if not index.isdigit() or int(index) >= len(self.parameters):
                raise StateError(f"the saved optimizer entry {name!r} fits no parameter of this model")
            parameter = self.parameters[int(index)]
            if key == "step" or value.shape != parameter.shape:
                self.optimizer.state[parameter][key] = value.clone()
            else:
                self.optimizer.state[parameter][key] = torch.empty_like(parameter, requires_grad=False).copy_(value)
