"""ADMM pruning: training pulls the weights towards a sparsity set.

Scaled dual form (Boyd et al. 2011, section 3.1.1; Zhang et al., ECCV 2018; PwoA, eqs. 8-10). Training minimises
loss + rho/2 |W - Z + U|^2; every few epochs Z = projection of W + U on the set, U = W + U - Z, and rho grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from .snapshot import Snapshot, copy_into

#: ADMM has converged where its primal residual ``|W - Z| / |W|`` is no larger.
LARGEST_RESIDUAL = 0.3

#: For each name, a function from a tensor of its weight's shape to the boolean mask of its projection; or one function
#: from all tensors by name to all masks, where weights are projected together.
Projections = Mapping[str, Callable[[Tensor], Tensor]] | Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


class ADMM:
    """State of ADMM over named weights.

    Args:
        weights: the tensors that are trained, by name; read, never replaced.
        masks: of their projections; see `Projections`.
        rho: initial penalty weight, positive.
        growth: factor of rho at every dual update, 1 or more.
        rho_max: cap of rho.
        rescale: keep the multiplier rho * U unchanged when rho grows, which shrinks U (Boyd et al., section 3.4.1).
            Without it, as published, the multiplier jumps with rho, and the residual falls more slowly.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        masks: Projections,
        *,
        rho: float,
        growth: float,
        rho_max: float,
        rescale: bool = True,
    ) -> None:
        self.weights, self.masks = dict(weights), masks
        self.rho, self.growth, self.rho_max, self.rescale = rho, growth, rho_max, rescale
        self.updates = 0
        with torch.no_grad():
            self.z = dict(self._projections({name: weight.detach() for name, weight in self.weights.items()}))
            self.u = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}

    def _projections(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        if isinstance(self.masks, Mapping):  # one layer after another, to hold one mask at a time
            for name, mask_of in self.masks.items():
                yield name, values[name] * mask_of(values[name])
        else:
            for name, mask in self.masks(values).items():
                yield name, values[name] * mask

    def penalty(self) -> Tensor:
        """``rho/2 * sum |W - Z + U|^2``, a differentiable scalar."""
        terms = [(w - self.z[name] + self.u[name]).square().sum() for name, w in self.weights.items()]
        return self.rho / 2 * torch.stack(terms).sum()

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the gradient of `penalty` to the weights' ``.grad``: cheaper than through autograd."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                difference = weight - self.z[name] + self.u[name]
                weight.grad.add_(difference.to(weight.grad.dtype), alpha=self.rho)

    @torch.no_grad()
    def dual_update(self) -> None:
        """Z = projection of W + U, U += W - Z; then rho grows."""
        grown = min(self.rho * self.growth, self.rho_max)
        scale = self.rho / grown if self.rescale else 1.0
        shifted = {name: weight + self.u[name] for name, weight in self.weights.items()}
        for name, projection in self._projections(shifted):
            self.z[name] = projection
            self.u[name] = (shifted[name] - projection) * scale
        self.rho = grown
        self.updates += 1

    @torch.no_grad()
    def residual(self) -> float:
        """Primal residual ``|W - Z| / |W|`` over all layers; 0 if the weights are in the set."""
        gap = sum((weight - self.z[name]).double().square().sum() for name, weight in self.weights.items())
        norm = sum(weight.double().square().sum() for weight in self.weights.values())
        return float(torch.as_tensor(gap).sqrt() / torch.as_tensor(norm).sqrt().clamp_min(1e-30))

    def state(self) -> Snapshot:
        """Z and U by layer, and rho."""
        return Snapshot.of({"rho": self.rho, "updates": self.updates}, z=Snapshot(self.z), u=Snapshot(self.u))

    def load_state(self, saved: Snapshot) -> None:
        """Restore what `state` returned; StateError if the layers differ."""
        copy_into(self.state().tensors, saved.tensors, "ADMM tensors")
        self.rho, self.updates = float(saved.facts["rho"]), int(saved.facts["updates"])


def self_scaled_updates(steps: int, *, rho: float, rho_max: float, interval: int | None = None) -> tuple[int, float]:
    """``(interval, growth)`` with which rho grows from ``rho`` to ``rho_max`` within ``steps``.

    As published, rho needs 16 updates, 3 epochs apart, to grow from .01 to its cap of 1: too many for a short run. Here
    at most 8 updates are spread over the steps (few updates left a smaller residual than many), and steps remain after
    the last one. If ``interval`` is given, only the growth adapts.
    """
    interval = interval or max(2, -(-steps // 9))
    updates = max(1, (steps - 1) // interval)
    return interval, (rho_max / rho) ** (1 / updates)
