"""The hidden layers of a student that trains: those that can be used, and those that its teacher has, too."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .hidden import listed, unlike_batch

_logger = logging.getLogger(__name__)


@dataclass
class StudentLayers:
    """One student's hidden layers, and those logged as not like the teacher's, or not usable in a step.

    Attributes:
        any_usable, any_alike: what `usable` and `alike` found last: any at all; None before.
    """

    layers: list[str]
    any_usable: bool | None = None
    any_alike: bool | None = None
    _not_alike: set[str] = field(default_factory=set)
    _unlike: set[str] = field(default_factory=set)

    def usable(self, hidden: dict[str, Tensor], images: int) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The hidden layers of a step that can be used, and those that cannot, with the reason.

        In training mode a network may run others than in eval mode. What is left out is logged once.
        """
        missing = {name: "which did not run" for name in self.layers if name not in hidden}
        unlike = {name: found for name, z in hidden.items() if (found := unlike_batch(z, images))}
        if new := {name: what for name, what in (missing | unlike).items() if name not in self._unlike}:
            _logger.warning("hidden layers are left out of a step's loss, in training mode: %s", listed(new))
            self._unlike.update(new)
        usable = {name: z for name, z in hidden.items() if name not in unlike}
        self.any_usable = bool(usable)
        return usable, unlike

    def alike(
        self,
        hidden: Mapping[str, Tensor],
        of_teacher: Mapping[str, Tensor],
        student_channels: Mapping[str, tuple[int, Tensor]],
    ) -> dict[str, Tensor]:
        """The teacher's hidden layers that the student has in the same shape; a pruned student may be narrower.

        Args:
            hidden, of_teacher: ``{layer: activations}``.
            student_channels: see `PwoALoss`.
        """
        alike = {}
        for name, target in of_teacher.items():
            if name in student_channels and (name not in hidden or hidden[name].shape != target.shape):
                dim, indices = student_channels[name]
                target = target.index_select(dim, indices)
            if name in hidden and hidden[name].shape == target.shape:
                alike[name] = target
        if left_out := [name for name in hidden if name not in alike and name not in self._not_alike]:
            _logger.warning(
                "no feature distillation of %s: the teacher has no such layer of that width", ", ".join(left_out)
            )
            self._not_alike.update(left_out)
        self.any_alike = bool(alike)
        return alike
