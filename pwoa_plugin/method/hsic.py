r"""The Hilbert-Schmidt independence criterion (HSIC), differentiable in a batch of hidden layers.

For a batch of m samples, ``K`` is the m x m kernel matrix of one side, ``H = I - 11'/m`` centres it.

* `NormalizedHSIC` (nHSIC, the authors' and the default): with ``R = KH (KH + 1e-5 m I)^-1``,
  ``nHSIC(A, B) = Tr(R_A R_B)`` (Fukumizu et al. 2008; Ma, Lewis and Kleijn, "The HSIC bottleneck", AAAI
  2020, eq. 4; used by PwoA, arXiv 2210.04311, eq. 5).
* `HSIC`: ``Tr(K_A H K_B H) / (m - 1)^2`` (Gretton et al. 2005, the biased estimator).

Two facts make nHSIC cheap. With symmetric centring, ``S = HKH (HKH + e I)^-1`` (``e = 1e-5 m``) gives the same value,
``Tr(S_A S_B)``, by a Cholesky factor; the literal formula inverts a matrix that is not symmetric. And inputs and labels
need no gradient: with ``M = H K_j H + e I``, ``Tr(S_A S_j) = Tr(S_A) - e Tr(M^-1 S_A)``, whose gradient by ``H K_j H``
is ``e M^-1 S_A M^-1``. The gradient of a Gaussian kernel by the activations is one more product with them. So forward
and backward are written by hand and share only an m x m inverse per layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .. import _ranks
from .._section import Section, check_options, key_of, names
from ..errors import InputError

_RIDGE = 1e-5  # the authors' epsilon, multiplied by m
LEAST_SIGMA, MOST_SIGMA = 1e-9, 1e9  # beyond, the kernel's exponent overflows or vanishes


def _channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _matrix(x: Tensor) -> Tensor:
    """``(m, ...)`` as ``(m, d)``, float32 unless it is float64: half precision is too coarse for kernels.

    Features are in their order in memory, which saves a copy; kernels do not depend on it.
    """
    x = (x.permute(0, 2, 3, 1) if _channels_last(x) else x).flatten(1)
    return x if x.dtype == torch.float64 else x.float()


def _as_before(rows: Tensor, x: Tensor) -> Tensor:
    """``(m, d)`` rows of `_matrix` in the shape, memory format and dtype of ``x``."""
    if _channels_last(x):
        m, channels, height, width = x.shape
        return rows.view(m, height, width, channels).permute(0, 3, 1, 2).to(x.dtype)
    return rows.view(x.shape).to(x.dtype)


def _centred(kernel: Tensor) -> Tensor:
    """``HKH`` for ``(..., m, m)`` symmetric kernels."""
    rows = kernel.mean(dim=-1, keepdim=True)
    across = rows.transpose(-1, -2) - rows.mean(dim=-2, keepdim=True)
    return (kernel - rows).sub_(across)


def _gaussian_minus_one(x: Tensor, sigma: float) -> Tensor:
    """``exp(-|x_a - x_b|^2 / (2 sigma^2 d)) - 1``; centring removes constants anyway.

    With sigma 5 the kernel is close to 1 everywhere: `expm1` keeps digits that float32 would lose.
    """
    if not LEAST_SIGMA <= sigma <= MOST_SIGMA:
        raise InputError(f"sigma={sigma!r}: give a number between {LEAST_SIGMA:g} and {MOST_SIGMA:g}")
    products = x @ x.t()
    squares = products.diagonal()
    distances = torch.add(squares[:, None] + squares, products, alpha=-2).clamp_(min=0)
    return distances.mul_(-1 / (2 * sigma**2 * x.shape[1])).expm1_()


def gaussian_kernel(x: Tensor, sigma: float = 5.0) -> Tensor:
    """Gaussian kernel ``(m, m)`` with variance ``2 sigma^2 d`` of ``x`` ``(m, ...)``, flattened to d features.

    float32 (float64 for float64 ``x``), without gradient: `hsic` has it.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _gaussian_minus_one(_matrix(x), sigma) + 1


def linear_kernel(x: Tensor) -> Tensor:
    """Linear kernel ``x x'`` of ``(m, ...)`` rows, PwoA's for one-hot labels; ``(m, m)``."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        x = _matrix(x)
        return x @ x.t()


class HSICEstimator(ABC):
    """How to measure the dependence of centred kernel matrices.

    A new estimator is one subclass and one line in ``ESTIMATORS``.
    """

    @abstractmethod
    def represent(self, centred: Tensor) -> Tensor:
        """What `measure` compares, from every ``HKH``: ``(n, m, m)`` to ``(n, m, m)``, symmetric."""

    @abstractmethod
    def measure(self, references: Tensor, hidden: Tensor) -> Tensor:
        """Dependence ``(R, J)`` of J layers on R references, ``(J, m, m)`` and ``(R, m, m)`` from `represent`."""

    @abstractmethod
    def gradient(self, weights: Tensor, references: Tensor, hidden: Tensor) -> Tensor:
        """Gradient of ``sum(weights * measure(...))`` by the layers' ``HKH``, ``(J, m, m)``; weights ``(R, J)``."""


class NormalizedHSIC(HSICEstimator):
    """nHSIC, between 0 (independent) and about m; formula and source are at the top of the module.

    Only ``P = (HKH + e I)^-1`` is kept of each kernel: ``S = I - e P``.
    """

    def represent(self, centred: Tensor) -> Tensor:
        m = centred.shape[-1]
        shifted = centred + _RIDGE * m * torch.eye(m, dtype=centred.dtype, device=centred.device)
        # `_ex` does not raise (nor wait for a GPU): NaN stays NaN, and the trainer notices it.
        factor, info = torch.linalg.cholesky_ex(shifted)
        return torch.cholesky_inverse(factor).where((info == 0)[:, None, None], torch.nan)

    def measure(self, references: Tensor, hidden: Tensor) -> Tensor:
        m = hidden.shape[-1]
        e = _RIDGE * m
        of_references = references.diagonal(dim1=-2, dim2=-1).sum(-1)
        of_hidden = hidden.diagonal(dim1=-2, dim2=-1).sum(-1)
        inner = references.flatten(1) @ hidden.flatten(1).t()
        return m - e * (of_references[:, None] + of_hidden) + e**2 * inner

    def gradient(self, weights: Tensor, references: Tensor, hidden: Tensor) -> Tensor:
        m = hidden.shape[-1]
        e = _RIDGE * m
        combined = (-e) * (weights.t() @ references.flatten(1)).view_as(hidden)
        combined.diagonal(dim1=-2, dim2=-1).add_(weights.sum(0)[:, None])
        return (e * hidden) @ combined @ hidden


class HSIC(HSICEstimator):
    """Plain HSIC, the biased estimator of Gretton et al. 2005; never negative."""

    def represent(self, centred: Tensor) -> Tensor:
        return centred / (centred.shape[-1] - 1)

    def measure(self, references: Tensor, hidden: Tensor) -> Tensor:
        return references.flatten(1) @ hidden.flatten(1).t()

    def gradient(self, weights: Tensor, references: Tensor, hidden: Tensor) -> Tensor:
        return (weights.t() @ references.flatten(1)).view_as(hidden) / (hidden.shape[-1] - 1)


ESTIMATORS: dict[str, type[HSICEstimator]] = {"nhsic": NormalizedHSIC, "hsic": HSIC}


class HSICConfig(Section):
    """The Hilbert-Schmidt information bottleneck on hidden layers.

    Attributes:
        lambda_x: weight of ``sum_j nHSIC(X, T_j)``, minimised.
        lambda_y: weight of ``sum_j nHSIC(Y, T_j)``, maximised; above 0 the run needs labels.
        sigma: width of the Gaussian kernels, per feature.
        layers: ``auto``, or names of the modules whose inputs are the T_j.
        estimator: a key of ``ESTIMATORS``: ``nhsic`` (the paper) or ``hsic``.
        options: of the estimator.
        share: share of the training steps with these terms, drawn at random; there they count ``1 / share`` times.
            None: a quarter in a run that trains by Adam or AdamW, in ADMM, too, where nothing is lost
            (docs/ablations.md); else 1, as in the paper, since SGD diverges by rare and large gradients.
        gather: among several processes, compare the images of all, whose hidden activations each gets; otherwise each
            compares its own. See docs/scale.md. In a loop of your own all need the same ``seed``: processes that draw
            different steps would wait for each other.
    """

    lambda_x: float = Field(default=2e-4, ge=0)
    lambda_y: float = Field(default=5e-5, ge=0)
    sigma: float = Field(default=5.0, ge=LEAST_SIGMA, le=MOST_SIGMA)
    layers: Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(names)] = "auto"
    estimator: Annotated[str, key_of(ESTIMATORS)] = "nhsic"
    options: dict[str, Any] = Field(default_factory=dict)
    gather: bool = False
    share: float | None = Field(default=None, gt=0, le=1)

    @property
    def wanted(self) -> bool:
        """Whether any of the terms has a weight."""
        return self.lambda_x > 0 or self.lambda_y > 0

    def weights(self, labels: bool) -> dict[str, float]:
        """The signed weights of the terms that are computed, with or without labels, by name."""
        weights = {"hsic_x": self.lambda_x, "hsic_y": -self.lambda_y if labels else 0.0}
        return {name: weight for name, weight in weights.items() if weight}

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        check_options(ESTIMATORS[self.estimator], self.options)
        return self

    def make_estimator(self) -> HSICEstimator:
        return ESTIMATORS[self.estimator](**self.options)


class _Dependence(torch.autograd.Function):
    """``(R, J)`` values of J hidden layers with R reference kernels; gradient for the hidden layers only."""

    @staticmethod
    def forward(ctx: Any, estimator: HSICEstimator, sigma: float, references: Tensor, *hidden: Tensor) -> Tensor:
        with torch.autocast(references.device.type, enabled=False):
            kernels = torch.empty(
                (len(references) + len(hidden), *references.shape[1:]), dtype=references.dtype, device=references.device
            )
            kernels[: len(references)] = references
            for kernel, z in zip(kernels[len(references) :], hidden, strict=True):
                kernel.copy_(_gaussian_minus_one(_matrix(z), sigma))
            represented = estimator.represent(_centred(kernels))
            values = estimator.measure(represented[: len(references)], represented[len(references) :])
        ctx.estimator, ctx.sigma = estimator, sigma
        ctx.save_for_backward(represented, kernels, *hidden)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        represented, kernels, *hidden = ctx.saved_tensors
        first = len(kernels) - len(hidden)
        with torch.autocast(represented.device.type, enabled=False):
            by_centred = ctx.estimator.gradient(gradient, represented[:first], represented[first:])
            by_kernel = _centred(by_centred).mul_(kernels[first:] + 1)
            # Laplacian of the pairs' weights: its product with the activations is their gradient.
            laplacian = by_kernel.neg()
            laplacian.diagonal(dim1=-2, dim2=-1).add_(by_kernel.sum(dim=-1))
            gradients: list[Tensor | None] = []
            for j, z in enumerate(hidden):
                if not ctx.needs_input_grad[3 + j]:
                    gradients.append(None)
                    continue
                x = _matrix(z)
                # Each pair counts twice and d exp(-D/v) = -exp(-D/v) dD / v, v = 2 sigma^2 d.
                scale = -2 / (ctx.sigma**2 * x.shape[1])
                gradients.append(_as_before((scale * laplacian[j]).to(x.dtype) @ x, z))
        return (None, None, None, *gradients)


def hsic(
    references: Sequence[Tensor],
    hidden: Sequence[Tensor],
    *,
    sigma: float = 5.0,
    estimator: HSICEstimator | None = None,
) -> Tensor:
    """Dependence of every hidden layer on every reference, differentiable once in the hidden layers.

    Computed on the tensors' own device, in float32 (float64 if all inputs are), also under autocast.

    Args:
        references: R kernel matrices ``(m, m)`` (`gaussian_kernel` of the images, `linear_kernel` of one-hot labels),
            m at least 2; they get no gradient.
        hidden: J activations ``(m, ...)``; they get a Gaussian kernel.
        sigma: width of the hidden layers' kernel (variance ``2 sigma^2 d``).
        estimator: nHSIC unless given.

    Returns:
        ``(R, J)`` values.

    Raises:
        InputError: the batch sizes differ.
    """
    if len(sizes := {len(tensor) for tensor in (*references, *hidden)}) > 1:  # one of 1 would be broadcast
        raise InputError(f"hsic.layers: batches have sizes {sorted(sizes)}; name layers with one row per image")
    stacked = torch.stack(list(references)).detach()
    values: Tensor = _Dependence.apply(estimator or NormalizedHSIC(), sigma, stacked, *hidden)
    return values


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Labels ``(m,)`` int64 as float32 one-hot rows ``(m, num_classes)``."""
    return F.one_hot(labels, num_classes).float()


class _RowsOfAll(torch.autograd.Function):
    """Rows of all processes, as many of each; the gradient of all processes' losses flows back to each."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(_ranks.size())]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.stack(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        torch.distributed.all_reduce(gradient)
        return gradient[_ranks.rank()]


def rows_of_all(x: Tensor) -> Tensor:
    """The samples of all processes, ``(m, ...)`` as ``(sum of m, d)``, differentiable; in one process ``x`` itself."""
    if not _ranks.begin():
        return x
    rows = x.flatten(1) if x.dim() > 1 else x[:, None]
    sizes = _ranks.gathered(len(rows))
    found = _RowsOfAll.apply(F.pad(rows, (0, 0, 0, max(sizes) - len(rows))))
    together = torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])
    return together if x.dim() > 1 else together[:, 0]


def hsic_terms(
    config: HSICConfig, estimator: HSICEstimator, x: Tensor, y: Tensor | None, hidden: Sequence[Tensor], classes: int
) -> dict[str, Tensor]:
    """The terms of the loss by name, weighted and signed: images ``(m, ...)``, labels ``(m,)`` and hidden layers."""
    if config.gather:
        x, y = rows_of_all(x), None if y is None else rows_of_all(y)
        hidden = [rows_of_all(z) for z in hidden]
    references, weights = [], config.weights(labels=y is not None)
    if "hsic_x" in weights:
        references.append(gaussian_kernel(x, config.sigma))
    if y is not None and "hsic_y" in weights:
        references.append(linear_kernel(one_hot(y, classes)))
    values = hsic(references, hidden, sigma=config.sigma, estimator=estimator).sum(1)
    return {name: weight * value for (name, weight), value in zip(weights.items(), values, strict=True)}
