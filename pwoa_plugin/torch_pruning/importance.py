"""`PwoAImportance`: how much a channel matters to ADMM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from ..errors import InputError
from .coupling import channel_scores, parts_of


class PwoAImportance(tp.importance.Importance):
    """The norm of W + U over a dependency group, for any of Torch-Pruning's pruners.

    Everything that goes with a channel counts, as in ADMM's projection: filters, biases, normalisation, and the weights
    of the layers that read it. Scores are divided by their group's mean, so that they compare across groups.

    Args:
        duals: ADMM's U by parameter, in its shape; parameters without one count as they are. The ``importance`` of a
            `PwoAGroupPruner` has the duals of its ADMM; its own `step` chooses by W alone.

    Raises:
        ValueError: a dual has another shape than its parameter.
    """

    def __init__(self, duals: Mapping[nn.Parameter, Tensor] | None = None) -> None:
        for parameter, dual in (duals or {}).items():
            if dual.shape != parameter.shape:
                raise InputError(
                    f"duals: {tuple(dual.shape)} is not the shape of its parameter {tuple(parameter.shape)}"
                )
        self.duals: dict[nn.Parameter, Tensor] = dict(duals or {})

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor | None:
        """``(channels,)``: a score for each channel of the group's root; None for a group without weights."""
        parts = list(parts_of(group))
        if not parts:
            return None
        members = {part.parameter for part in parts}
        values = {member: member.detach() + self.duals[member] for member in members if member in self.duals}
        norms = channel_scores(parts, len(group[0].idxs), values).sqrt()
        return normalised(norms).to(parts[0].parameter.device)


def normalised(norms: Tensor) -> Tensor:
    """Norms divided by their mean; unchanged if all are 0."""
    mean = norms.mean()
    return norms / mean if mean > 0 else norms
