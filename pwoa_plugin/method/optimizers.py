"""The optimizer of the weights, and its learning rate over a stretch of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .._section import Section, key_of
from ..errors import InputError
from .snapshot import Snapshot, StateError


def _sgd(parameters: list[nn.Parameter], config: OptimizerConfig) -> Optimizer:
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _adam(parameters: list[nn.Parameter], config: OptimizerConfig) -> Optimizer:
    return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)


def _adamw(parameters: list[nn.Parameter], config: OptimizerConfig) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], Any], Optimizer]] = {"adam": _adam, "adamw": _adamw, "sgd": _sgd}


def _constant(config: ScheduleConfig, progress: float, epoch: int) -> float:
    return 1.0


def _cosine(config: ScheduleConfig, progress: float, epoch: int) -> float:
    return (1 + math.cos(math.pi * min(1.0, progress))) / 2


def _linear(config: ScheduleConfig, progress: float, epoch: int) -> float:
    return max(0.0, 1 - progress)


def _multistep(config: ScheduleConfig, progress: float, epoch: int) -> float:
    return float(config.gamma ** sum(epoch >= milestone for milestone in config.milestones))


def _cycle(config: ScheduleConfig, progress: float, epoch: int) -> float:
    return float(config.factors[epoch % len(config.factors)])


#: The factor of the learning rate by the share of steps done and the epoch.
SCHEDULES: dict[str, Callable[[Any, float, int], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "multistep": _multistep,
    "cycle": _cycle,
}


class OptimizerConfig(Section):
    """The optimizer of the weights.

    Attributes:
        name: ``adam``, ``adamw`` or ``sgd``.
        lr: learning rate, positive. 3e-3 was chosen on MNIST, where 1e-2 kept more beyond 33x; of the study's CIFAR-10
            network 1e-3 kept as much or more (docs/results.md).
        momentum: of SGD; the others ignore it.
        weight_decay: L2 penalty (decoupled in ``adamw``).
    """

    name: Annotated[str, key_of(OPTIMIZERS)] = "adam"
    lr: float = Field(default=3e-3, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)


class ScheduleConfig(Section):
    """The learning rate over a phase, as a factor of the optimizer's ``lr``.

    Attributes:
        name: ``constant``; ``cosine`` or ``linear`` (per step, from 1 to 0); ``multistep`` (times ``gamma`` at each
            of ``milestones``); ``cycle`` (``factors`` by epoch, over and over: the published ADMM).
        milestones: epochs of ``multistep``, counted from 0.
        gamma: factor of ``multistep``.
        factors: factors of ``cycle``.
        warmup: share of the phase's steps over which the factor rises from 0 to its schedule.
    """

    name: Annotated[str, key_of(SCHEDULES)] = "cosine"
    milestones: tuple[Annotated[int, Field(ge=0)], ...] = ()
    gamma: float = Field(default=0.1, gt=0)
    factors: tuple[float, ...] = (1.0, 0.1, 0.01)
    warmup: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _complete(self) -> ScheduleConfig:
        if self.name == "multistep" and not self.milestones:
            raise InputError("milestones is empty: name the epochs at which `multistep` drops the rate")
        if self.name == "cycle" and not self.factors:
            raise InputError("factors is empty: name the factors that `cycle` repeats")
        return self


def lr_factor(schedule: ScheduleConfig, steps: int, per_epoch: int, step: int) -> float:
    """The factor of the learning rate at ``step`` (from 0) of ``steps``."""
    factor = SCHEDULES[schedule.name](schedule, step / steps, step // per_epoch)
    warmup = round(schedule.warmup * steps)
    return factor * (step + 1) / warmup if step < warmup else factor


class ScheduledOptimizer:
    """An optimizer and its learning rate schedule.

    Args:
        parameters: what it trains.
        config, schedule: its sections.
        steps: the schedule's length.
        per_epoch: steps of an epoch.
        done: steps of the schedule that are done already.
    """

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
        """The rate of the step just done; sets that of the next one."""
        lr = float(self._scheduler.get_last_lr()[0])
        self._scheduler.step()
        return lr

    def state(self) -> Snapshot:
        """The optimizer's tensors (moments, momentum, counts), by the number of their parameter."""
        return Snapshot(
            {
                f"{i}.{key}": value
                for i, parameter in enumerate(self.parameters)
                for key, value in self.optimizer.state.get(parameter, {}).items()
                if isinstance(value, Tensor)
            }
        )

    def load_state(self, saved: Snapshot) -> None:
        """Put back what `state` gave.

        Raises:
            StateError: a tensor fits no parameter.
        """
        for name, value in saved.tensors.items():
            index, _, key = name.partition(".")
            if not index.isdigit() or int(index) >= len(self.parameters):
                raise StateError(f"the saved optimizer entry {name!r} fits no parameter of this model")
            parameter = self.parameters[int(index)]
            if key == "step" or value.shape != parameter.shape:
                self.optimizer.state[parameter][key] = value.clone()
            else:
                self.optimizer.state[parameter][key] = torch.empty_like(parameter, requires_grad=False).copy_(value)
