r"""The Hilbert-Schmidt independence criterion (HSIC), differentiable in a batch of hidden layers.

For a batch of m samples, ``K`` is the m x m kernel matrix of one side, ``H = I - 11'/m`` centres it.

* `NormalizedHSIC` (nHSIC, the authors' and the default): with ``R = KH (KH + 1e-5 m I)^-1``,
  ``nHSIC(A, B) = Tr(R_A R_B)`` (Fukumizu et al. 2008; Ma, Lewis and Kleijn, "The HSIC bottleneck", AAAI
  2020, eq. 4; used by PwoA, arXiv 2210.04311, eq. 5).
* `HSIC`: ``Tr(K_A H K_B H) / (m - 1)^2`` (Gretton et al. 2005, the biased estimator).

Two facts make nHSIC cheap here. With symmetric centring, ``S = HKH (HKH + e I)^-1`` (``e = 1e-5 m``) gives
the same number, ``Tr(S_A S_B)``, so that a Cholesky factor serves where the literal formula inverts a matrix
that is not symmetric. And inputs and labels need no gradient: with ``M = H K_j H + e I``,
``Tr(S_A S_j) = Tr(S_A) - e Tr(M^-1 S_A)``, whose gradient by ``H K_j H`` is ``e M^-1 S_A M^-1``. The gradient of a
Gaussian kernel by the activations is one more product with them. So forward and backward are by
hand, and an m x m inverse per layer is all they share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = [
    "ESTIMATORS",
    "HSIC",
    "HSICEstimator",
    "NormalizedHSIC",
    "gaussian_kernel",
    "hsic",
    "linear_kernel",
]

_RIDGE = 1e-5  # the authors' epsilon, multiplied by m


def _matrix(x: Tensor) -> Tensor:
    """``(m, ...)`` as ``(m, d)``, in float32 unless it is float64: kernels do not survive half precision."""
    x = x.flatten(1)
    return x if x.dtype == torch.float64 else x.float()


def _centred(kernel: Tensor) -> Tensor:
    """``HKH`` for ``(..., m, m)`` symmetric kernels."""
    rows = kernel.mean(dim=-1, keepdim=True)
    return kernel - rows - rows.transpose(-1, -2) + rows.mean(dim=-2, keepdim=True)


def _gaussian_minus_one(x: Tensor, sigma: float) -> Tensor:
    """``exp(-|x_a - x_b|^2 / (2 sigma^2 d)) - 1``, the one taken off because centring does so anyhow.

    With sigma 5 the kernel is close to 1 everywhere: `expm1` keeps the digits that float32 would lose.
    """
    x = x - x.mean(dim=0)  # distances do not change, their rounding shrinks
    squares = x.square().sum(dim=1)
    distances = torch.addmm(squares[:, None] + squares[None, :], x, x.t(), alpha=-2.0)
    distances.clamp_(min=0).fill_diagonal_(0)
    return distances.mul_(-1 / (2 * sigma**2 * x.shape[1])).expm1_()


def gaussian_kernel(x: Tensor, sigma: float = 5.0) -> Tensor:
    """Gaussian kernel with variance ``2 sigma^2 d``.

    Args:
        x: ``(m, ...)``, flattened to m rows of d features.
        sigma: kernel width per feature.

    Returns:
        ``(m, m)``, float32 (float64 for float64 ``x``). Not differentiable: see `hsic` for that.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _gaussian_minus_one(_matrix(x), sigma) + 1


def linear_kernel(x: Tensor) -> Tensor:
    """Linear kernel ``x x'`` of ``(m, ...)`` rows, as PwoA takes it for one-hot labels; ``(m, m)``."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        x = _matrix(x)
        return x @ x.t()


class HSICEstimator(ABC):
    """How the dependence of two centred kernel matrices is measured.

    A new estimator is one subclass and one line in ``ESTIMATORS``.
    """

    @abstractmethod
    def reference(self, centred: Tensor) -> Tensor:
        """What the side without gradient contributes, from its ``HKH`` (``(m, m)``); ``(m, m)``, symmetric."""

    @abstractmethod
    def measure(self, references: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
        """Dependence of J layers on R references.

        Args:
            references: ``(R, m, m)``, each from `reference`.
            centred: ``(J, m, m)``, the layers' ``HKH``.

        Returns:
            The ``(R, J)`` values, and the ``(J, m, m)`` tensor that `gradient` wants to have back.
        """

    @abstractmethod
    def gradient(self, weighted: Tensor, saved: Tensor) -> Tensor:
        """Gradient by ``HKH``, ``(J, m, m)``; ``weighted`` is ``(J, m, m)``: sums of references times gradients."""


class NormalizedHSIC(HSICEstimator):
    """nHSIC, between 0 (independent) and about m (see the module's text for formula and source)."""

    def _inverse(self, centred: Tensor) -> Tensor:
        m = centred.shape[-1]
        ridge = _RIDGE * m * torch.eye(m, dtype=centred.dtype, device=centred.device)
        # `_ex` does not raise (and does not wait for a GPU): a NaN comes out as a NaN and is caught above.
        factor, info = torch.linalg.cholesky_ex(centred + ridge)
        inverse = torch.cholesky_inverse(factor)
        return inverse.where((info == 0)[..., None, None], torch.nan)

    def reference(self, centred: Tensor) -> Tensor:
        m = centred.shape[-1]
        eye = torch.eye(m, dtype=centred.dtype, device=centred.device)
        return eye - _RIDGE * m * self._inverse(centred)

    def measure(self, references: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
        inverse = self._inverse(centred)
        traces = references.diagonal(dim1=-2, dim2=-1).sum(-1)
        inner = references.flatten(1) @ inverse.flatten(1).t()
        return traces[:, None] - _RIDGE * centred.shape[-1] * inner, inverse

    def gradient(self, weighted: Tensor, saved: Tensor) -> Tensor:
        return (_RIDGE * saved.shape[-1]) * (saved @ weighted @ saved)


class HSIC(HSICEstimator):
    """Plain HSIC, the biased estimator of Gretton et al. 2005; not negative."""

    def reference(self, centred: Tensor) -> Tensor:
        return centred / (centred.shape[-1] - 1) ** 2

    def measure(self, references: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
        return references.flatten(1) @ centred.flatten(1).t(), centred

    def gradient(self, weighted: Tensor, saved: Tensor) -> Tensor:
        return weighted


ESTIMATORS: dict[str, HSICEstimator] = {"nhsic": NormalizedHSIC(), "hsic": HSIC()}


class _Dependence(torch.autograd.Function):
    """``(R, J)`` values of J hidden layers with R references; gradient for the hidden layers only."""

    @staticmethod
    def forward(
        ctx: Any, estimator: HSICEstimator, sigma: float, references: Tensor, *hidden: Tensor
    ) -> Tensor:
        with torch.autocast(references.device.type, enabled=False):
            kernels = torch.stack([_gaussian_minus_one(_matrix(z), sigma) for z in hidden])
            kernels = kernels.to(references.dtype)
            values, saved = estimator.measure(references, _centred(kernels))
        ctx.estimator, ctx.sigma = estimator, sigma
        ctx.save_for_backward(references, kernels, saved, *hidden)
        return values

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        references, kernels, saved, *hidden = ctx.saved_tensors
        with torch.autocast(references.device.type, enabled=False):
            weighted = torch.einsum("rj,rab->jab", gradient, references)
            by_kernel = _centred(ctx.estimator.gradient(weighted, saved)).mul_(kernels + 1)
            row_sums = by_kernel.sum(dim=-1, keepdim=True)
            gradients: list[Tensor | None] = []
            for j, z in enumerate(hidden):
                if not ctx.needs_input_grad[3 + j]:
                    gradients.append(None)
                    continue
                x = _matrix(z)
                # d|x_a - x_b|^2 counts every pair twice, hence 4 / (2 sigma^2 d) = 2 / (sigma^2 d).
                scale = 2 / (ctx.sigma**2 * x.shape[1])
                sums, pairs = row_sums[j].to(x.dtype), by_kernel[j].to(x.dtype)
                by_x = torch.addmm(sums * x, pairs, x, beta=-scale, alpha=scale)
                gradients.append(by_x.view(z.shape).to(z.dtype))
        return (None, None, None, *gradients)


def hsic(
    references: Sequence[Tensor],
    hidden: Sequence[Tensor],
    *,
    sigma: float = 5.0,
    estimator: HSICEstimator | None = None,
) -> Tensor:
    """Dependence of every hidden layer on every reference, differentiable once in the hidden layers.

    Computed on the tensors' own device, in float32 (float64 where all inputs are), also under autocast.

    Args:
        references: R kernel matrices ``(m, m)`` (`gaussian_kernel` of the images, `linear_kernel` of one-hot
            labels); no gradient reaches them.
        hidden: J activations ``(m, ...)``; they get a Gaussian kernel.
        sigma: width of the hidden layers' kernel (variance ``2 sigma^2 d``).
        estimator: nHSIC unless given.

    Returns:
        ``(R, J)`` values.

    Raises:
        ValueError: nothing to compare, a batch of fewer than 2, or batches of different sizes.
    """
    estimator = estimator or ESTIMATORS["nhsic"]
    if not references or not hidden:
        raise ValueError("hsic needs at least one reference and one hidden layer")
    sizes = {len(tensor) for tensor in (*references, *hidden)}
    if len(sizes) > 1 or min(sizes) < 2:
        raise ValueError(f"hsic needs one batch of at least 2 samples on both sides, got sizes {sorted(sizes)}")
    with torch.no_grad(), torch.autocast(references[0].device.type, enabled=False):
        fixed = torch.stack([estimator.reference(_centred(kernel)) for kernel in references])
    values: Tensor = _Dependence.apply(estimator, sigma, fixed, *hidden)  # type: ignore[no-untyped-call]
    return values


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Labels ``(m,)`` int64 as float32 one-hot rows ``(m, num_classes)``."""
    return F.one_hot(labels, num_classes).float()
