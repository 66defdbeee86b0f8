"""The phases of a run, and the hard prune before fine-tuning.

Our trainer, NNI's patched optimizer step, Torch-Pruning's `regularize` and your own loop drive the same objects::

    schedule.start()
    for x, y in batches:
        loss(student, x, y).backward()     # or add schedule.phase.penalty() to the loss, and leave out the next line
        schedule.after_backward()
        optimizer.step()
        schedule.after_step()
        while schedule.due:
            schedule.advance()
    schedule.finish()
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from .phases import ADMMPhase, Phase, TuningPhase
from .snapshot import Snapshot, StateError
from .targets import Target

_logger = logging.getLogger(__name__)


class Schedule:
    """The phases of a run, in order; see the example at the top of this module.

    Args:
        target: what to prune.
        phases: those before fine-tuning; any without steps are left out.
        tuning: steps of fine-tuning.
        check: called before the hard prune; may raise.

    Attributes:
        residual: ADMM's primal residual at its end; None without ADMM, and before.
    """

    def __init__(
        self, target: Target, phases: Sequence[Phase], *, tuning: int = 0, check: Callable[[], None] = lambda: None
    ) -> None:
        self.target, self._check = target, check
        self.phases = [*(phase for phase in phases if phase.length > 0), TuningPhase(tuning)]
        self.residual: float | None = None
        self._at = 0

    @property
    def phase(self) -> Phase:
        """The phase of the next step."""
        return self.phases[self._at]

    @property
    def due(self) -> bool:
        """Whether the phase has done its steps and another follows."""
        return self._at + 1 < len(self.phases) and self.phase.done >= self.phase.length

    def start(self) -> None:
        """Begin the first phase; without ADMM and gradual pruning, the hard prune comes now."""
        self._at, self.residual = 0, None
        self._begin_phase()

    def _begin_phase(self) -> None:
        if isinstance(self.phase, TuningPhase):
            self._prune()
        self.target.admm = None
        self.phase.begin()

    def after_backward(self) -> None:
        """Let the phase change the gradients: after ``backward()`` (and ``unscale_``), before the optimizer's step."""
        self.phase.after_backward()

    def after_step(self) -> None:
        """Hold what is pruned at 0, then let the phase act."""
        self.target.hold()
        self.phase.after_step()

    def advance(self) -> None:
        """End this phase and begin the next."""
        self._finish_phase()
        self._at += 1
        self._begin_phase()

    def finish(self) -> None:
        """End the run, with the hard prune if it has not happened yet."""
        phase = self.phase
        if phase.done < phase.last_action and not self.target.done:
            _logger.warning(
                "training ended at step %d of %d of phase %s; pruned to the full sparsity",
                phase.done,
                phase.last_action,
                phase.name,
            )
        self._finish_phase()
        self._prune()
        self.target.admm = None

    def _finish_phase(self) -> None:
        self.phase.finish()
        if isinstance(self.phase, ADMMPhase):
            self.residual = self.phase.residual

    def _prune(self) -> None:
        if not self.target.done:
            self._check()
            self.target.prune(allocate=any(phase.allocates for phase in self.phases))
            self.target.hold()

    def state(self) -> Snapshot:
        """For `load_state`."""
        facts = {"at": self._at, "residual": self.residual, "plan": self._plan()}
        return Snapshot.of(facts, **{f"phase{i}": self.phases[i].state() for i in range(self._at + 1)})

    def _plan(self) -> list[list[object]]:
        return [[phase.name, phase.length, getattr(phase, "interval", None)] for phase in self.phases]

    def load_state(self, saved: Snapshot) -> None:
        """Continue from what `state` returned, in place of `start`; load the target's state before.

        Raises:
            StateError: the phases differ.
        """
        if saved.facts["plan"] != self._plan():
            raise StateError(
                f"the saved state is of a run of other phases ({saved.facts['plan']}) than this one ({self._plan()}); "
                "resume with the same data and config"
            )
        self._at, self.residual = int(saved.facts["at"]), saved.facts["residual"]
        for i in range(self._at):
            self.phases[i].done = int(saved.facts[f"phase{i}"]["done"])
        self.phase.load_state(saved.part(f"phase{self._at}"))
