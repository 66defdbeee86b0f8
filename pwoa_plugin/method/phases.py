"""When to prune: ADMM, gradual pruning and fine-tuning, each a phase that acts on a `Target`.

A new phase is a subclass of `Phase` in its own file, and one line where `Trainer` lists the phases.
"""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Callable
from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from .._section import Section
from ..errors import InputError
from .admm import ADMM, self_scaled_updates
from .optimizers import OptimizerConfig, ScheduleConfig
from .snapshot import Snapshot, StateError
from .targets import Target

_logger = logging.getLogger(__name__)

_CUTS = 48


class ADMMConfig(Section):
    """The ADMM phase, before the hard prune.

    Attributes:
        epochs: its length. None: a quarter of the run's ``epochs`` (1 of 2 or 3) if any option here is set or
            gradual pruning is off; otherwise 0.
        interval: epochs between dual updates. None: 8 updates, spread over the phase's steps.
        rho: initial penalty weight.
        growth: factor of rho at a dual update. None: such that rho reaches ``rho_max`` within the phase.
        rho_max: cap of rho.
        rescale: whether to rescale the dual when rho grows (see `ADMM`); the paper does not.
        hsic: whether HSIC's terms are in this phase's loss.
        optimizer: of this phase; the next phase starts with a new one. None: the run's, whose schedule spans all
            phases.
        schedule: of this phase's own optimizer.
    """

    epochs: int | None = Field(default=None, ge=0)
    interval: int | None = Field(default=None, ge=1)
    rho: float = Field(default=0.1, gt=0)
    growth: float | None = Field(default=None, ge=1)
    rho_max: float = Field(default=10.0, gt=0)
    rescale: bool = True
    hsic: bool = True
    optimizer: OptimizerConfig | None = None
    schedule: ScheduleConfig = Field(default_factory=lambda: ScheduleConfig(name="constant"))

    @model_validator(mode="after")
    def _ordered(self) -> ADMMConfig:
        if self.rho > self.rho_max:
            raise InputError(f"rho={self.rho} is above rho_max={self.rho_max}; raise the cap")
        return self


class GradualConfig(Section):
    """Gradual pruning, before the hard prune: repeated cuts set more and more of the smallest weights to 0.

    Attributes:
        epochs: its length; 0 turns it off. None: half of the run's ``epochs``; 0 if only ``admm`` is set, or the
            granularity is reached in one cut (``structured``, ``n:m``).
        interval: steps between two cuts. None: such that there are 48 cuts or more (one at each step of a short phase).
    """

    epochs: int | None = Field(default=None, ge=0)
    interval: int | None = Field(default=None, ge=1)

    @property
    def wanted(self) -> bool:
        """Whether any option is set and the phase is not off."""
        return self.is_set and self.epochs != 0


def phase_lengths(
    total: int, admm: ADMMConfig, gradual: GradualConfig, *, one_cut: bool, per_epoch: int = 1
) -> tuple[int, int]:
    """Lengths of ADMM and of gradual pruning, as set or by default, in the units of ``total``.

    Args:
        total: length of the whole run, in epochs or in steps.
        admm, gradual: their sections.
        one_cut: whether the sparsity set is reached in one cut.
        per_epoch: units of ``total`` in an epoch: 1, or its steps.
    """
    if gradual.epochs is not None:
        cutting = gradual.epochs * per_epoch
    else:
        only_admm = admm.is_set and not gradual.wanted
        cutting = 0 if one_cut or only_admm else total // 2
    if admm.epochs is not None:
        return admm.epochs * per_epoch, cutting
    return 0 if cutting and not admm.is_set else max(total // 4, int(total > 1)), cutting


class Phase(ABC):
    """A part of a run.

    Attributes:
        length: its optimizer steps.
        done: how many of them are done.
        uses_hsic: whether HSIC's terms are in the loss.
        allocates: whether what each layer keeps follows the weights that this phase leaves.
        last_action: step of the phase's last action; training that ends before it logs a warning.
        rho, residual: ADMM's penalty weight in the last step, and its primal residual at the last dual update.
    """

    name: ClassVar[str]
    uses_hsic: bool = True
    allocates: ClassVar[bool] = False
    rho: float | None = None
    residual: float | None = None

    def __init__(self, length: int) -> None:
        self.length = self.last_action = length
        self.done = 0

    def begin(self) -> None:
        """Called before the first step."""
        self.done = 0

    def penalty(self) -> Tensor | None:
        """To be added to the loss in a loop that does not call `after_backward`."""
        return None

    def after_backward(self) -> None:  # noqa: B027 (most phases leave gradients alone)
        """Change the gradients."""

    def after_step(self) -> None:
        """Called after an optimizer step."""
        self.done += 1

    def finish(self) -> None:  # noqa: B027 (most phases have nothing to conclude)
        """Called after the last step."""

    def state(self) -> Snapshot:
        """For `load_state`."""
        return Snapshot(facts={"name": self.name, "done": self.done, "rho": self.rho, "residual": self.residual})

    def load_state(self, saved: Snapshot) -> None:
        """Continue from what `state` returned, in place of `begin`; StateError if it is another phase's."""
        if saved.facts["name"] != self.name:
            raise StateError(f"the saved state is in phase {saved.facts['name']}; resume with the same config")
        self.done = int(saved.facts["done"])
        self.rho, self.residual = saved.facts["rho"], saved.facts["residual"]


class ADMMPhase(Phase):
    """Training pulls the weights towards the sparsity set (see `ADMM`).

    Args:
        target: what to prune.
        config: rho, growth and interval; those that are None adapt to the length.
        length: optimizer steps, or calls of `update` in a loop that calls it directly.
        per_epoch: steps in an epoch, for ``config.interval``.
        interval: steps between dual updates, in place of the config's.
        last_update: the last step with a dual update; None: the phase's last step.
    """

    name = "admm"

    def __init__(
        self,
        target: Target,
        config: ADMMConfig,
        length: int,
        *,
        per_epoch: int = 1,
        interval: int | None = None,
        last_update: int | None = None,
    ) -> None:
        super().__init__(length)
        self.target, self.config, self.uses_hsic = target, config, config.hsic
        self.last_action = length if last_update is None else last_update
        asked = config.interval * per_epoch if interval is None and config.interval else interval
        steps = length if last_update is None else last_update + 1
        self.interval, growth = self_scaled_updates(steps, rho=config.rho, rho_max=config.rho_max, interval=asked)
        self.growth = growth if config.growth is None else config.growth
        self.admm: ADMM | None = None

    def begin(self) -> None:
        super().begin()
        self._make()
        self.rho = self.residual = None

    def _make(self) -> ADMM:
        weights, projections = self.target.weights_and_projections()
        rho, rho_max, rescale = self.config.rho, self.config.rho_max, self.config.rescale
        self.admm = ADMM(weights, projections, rho=rho, growth=self.growth, rho_max=rho_max, rescale=rescale)
        self.target.admm = self.admm
        return self.admm

    def penalty(self) -> Tensor | None:
        return None if self.admm is None else self.admm.penalty()

    def after_backward(self) -> None:
        if self.admm is not None:
            self.admm.add_gradient()

    def after_step(self) -> None:
        super().after_step()
        if self.admm is None:
            return
        self.rho = self.admm.rho
        if self.done % self.interval == 0 and self.done <= self.last_action:
            self.update()

    def update(self) -> None:
        """Do a dual update, in which rho grows."""
        assert self.admm is not None
        self.admm.dual_update()
        self.residual = self.admm.residual()

    def finish(self) -> None:
        """Note the primal residual of the weights before they are masked."""
        if self.admm is not None:
            self.residual = self.admm.residual()
            _logger.info("primal residual |W - Z| / |W| at the end of ADMM: %.4f", self.residual)
            self.admm = None

    def state(self) -> Snapshot:
        saved = super().state()
        if self.admm is not None:
            saved.put("admm", self.admm.state())
        return saved

    def load_state(self, saved: Snapshot) -> None:
        super().load_state(saved)
        self._make().load_state(saved.part("admm"))


class GradualPhase(Phase):
    """Cuts on the way from dense to the full sparsity (see `sparsity_at`).

    Args:
        target: what to prune.
        config: with the interval of the cuts.
        length: optimizer steps.
        check: called before each cut; may raise.
    """

    name = "gradual"
    allocates = True

    def __init__(
        self, target: Target, config: GradualConfig, length: int, *, check: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(length)
        self.target, self.check = target, check
        self.interval = config.interval or max(1, length // _CUTS)

    def after_step(self) -> None:
        super().after_step()
        if self.done % self.interval == 0 and self.done < self.length:
            self.check()
            self.target.cut(self.done / self.length)


class TuningPhase(Phase):
    """Fine-tuning of what is left after the hard prune."""

    name = "fine-tune"
