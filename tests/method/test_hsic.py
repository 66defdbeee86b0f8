"""nHSIC and HSIC against the literal formula in float64 and finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pwoa_plugin.method.hsic import ESTIMATORS, gaussian_kernel, hsic, linear_kernel, one_hot


def literal_kernel(x: Tensor, sigma: float) -> Tensor:
    x = x.flatten(1)
    rows = [[(-((a - b) ** 2).sum() / (2 * sigma**2 * x.shape[1])).exp() for b in x] for a in x]
    return torch.stack([torch.stack(row) for row in rows])


def literal(a: Tensor, b: Tensor, estimator: str) -> Tensor:
    m = len(a)
    eye = torch.eye(m, dtype=a.dtype)
    h = eye - 1 / m
    if estimator == "hsic":
        return torch.trace(a @ h @ b @ h) / (m - 1) ** 2
    r_a = a @ h @ torch.linalg.inv(a @ h + 1e-5 * m * eye)
    r_b = b @ h @ torch.linalg.inv(b @ h + 1e-5 * m * eye)
    return torch.trace(r_a @ r_b)


def batch(m: int = 12, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, list[Tensor]]:
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(m, 1, 5, 5, generator=random, dtype=dtype)
    y = torch.randint(0, 3, (m,), generator=random)
    hidden = [torch.randn(m, *shape, generator=random, dtype=dtype) for shape in [(4, 3, 3), (7,)]]
    return x, one_hot(y, 3).to(dtype), hidden


@pytest.mark.parametrize("estimator", ["nhsic", "hsic"])
@pytest.mark.parametrize("sigma", [5.0, 0.7])
def test_value_and_gradient_are_the_literal_formulas(estimator: str, sigma: float) -> None:
    x, y, hidden = batch()
    for z in hidden:
        z.requires_grad_()
    weights = torch.tensor([[0.3, -2.0], [1.5, 0.7]], dtype=torch.float64)
    references = [gaussian_kernel(x, sigma), linear_kernel(y)]
    ours = hsic(references, hidden, sigma=sigma, estimator=ESTIMATORS[estimator]())
    ours_gradient = torch.autograd.grad((ours * weights).sum(), hidden)

    sides = [literal_kernel(x, sigma), y @ y.t()]
    oracle = torch.stack(
        [torch.stack([literal(side, literal_kernel(z, sigma), estimator) for z in hidden]) for side in sides]
    )
    oracle_gradient = torch.autograd.grad((oracle * weights).sum(), hidden)
    torch.testing.assert_close(ours, oracle, rtol=1e-9, atol=1e-9)
    for got, expected in zip(ours_gradient, oracle_gradient, strict=True):
        # The literal inverse is the less exact of the two: it inverts a matrix with eigenvalues of 1e-5 m.
        assert (got - expected).norm() <= 1e-8 * expected.norm() + 5e-9


@pytest.mark.parametrize("estimator", ["nhsic", "hsic"])
def test_finite_differences(estimator: str) -> None:
    x, y, hidden = batch(m=6)
    references = [gaussian_kernel(x), linear_kernel(y)]
    inputs = tuple(z.requires_grad_() for z in hidden)

    def values(*layers: Tensor) -> Tensor:
        return hsic(references, layers, sigma=1.0, estimator=ESTIMATORS[estimator]())

    assert torch.autograd.gradcheck(values, inputs, eps=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(m=st.integers(2, 40), features=st.integers(1, 60), seed=st.integers(0, 999), scale=st.floats(0.01, 30))
def test_float32_keeps_four_digits(m: int, features: int, seed: int, scale: float) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(m, 9, generator=random, dtype=torch.float64)
    z = scale * torch.randn(m, features, generator=random, dtype=torch.float64)
    exact = hsic([gaussian_kernel(x)], [z])
    single = hsic([gaussian_kernel(x.float())], [z.float()])
    assert single.dtype == torch.float32
    # An nHSIC is at most m; near 0 the float32 kernels' own rounding, about 1e-7 / 1e-5, is the limit.
    torch.testing.assert_close(single.double(), exact, rtol=2e-3, atol=5e-3)


@settings(deadline=None, max_examples=30)
@given(m=st.integers(2, 20), seed=st.integers(0, 999), kind=st.sampled_from(["constant", "duplicated", "huge", "zero"]))
def test_finite_on_degenerate_rows(m: int, seed: int, kind: str) -> None:
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(m, 8, generator=random)
    z = {
        "constant": torch.ones(m, 8) * 3,
        "duplicated": z[:1].expand(m, 8).clone(),
        "huge": z * 1e6,
        "zero": torch.zeros(m, 8),
    }[kind].requires_grad_()
    x, y = torch.rand(m, 5, generator=random), one_hot(torch.zeros(m, dtype=torch.int64), 4)
    for estimator in (kind() for kind in ESTIMATORS.values()):
        values = hsic([gaussian_kernel(x), linear_kernel(y)], [z], estimator=estimator)
        (gradient,) = torch.autograd.grad(values.sum(), z)
        assert values.isfinite().all()
        assert gradient.isfinite().all()
        if kind != "huge":
            torch.testing.assert_close(values[:, 0], torch.zeros(2), atol=1e-3, rtol=0)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), m=st.integers(3, 16))
def test_does_not_depend_on_the_order_of_samples_and_shifts(seed: int, m: int) -> None:
    x, y, (z, _) = batch(m, seed)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    before = hsic([gaussian_kernel(x), linear_kernel(y)], [z])
    after = hsic([gaussian_kernel(x[order]), linear_kernel(y[order])], [z[order] + 4.2])
    torch.testing.assert_close(before, after, rtol=1e-6, atol=1e-6)


def test_a_layer_that_copies_the_labels_depends_on_them_most() -> None:
    _, y, _ = batch(32)
    noise = torch.randn(32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with_copy, with_noise = hsic([linear_kernel(y)], [y, 1e-3 * noise])[0]
    assert with_copy > 1.9  # three classes: two directions once centred
    plain_copy, plain_noise = hsic([linear_kernel(y)], [y, noise], estimator=ESTIMATORS["hsic"]())[0]
    assert plain_copy > 2 * plain_noise
    assert with_noise <= with_copy + 1e-6


def test_autocast_computes_in_float32() -> None:
    x, y, hidden = batch(16, dtype=torch.float32)
    half = [z.bfloat16().requires_grad_() for z in hidden]
    with torch.autocast("cpu", torch.bfloat16):
        values = hsic([gaussian_kernel(x), linear_kernel(y)], half)
        values.sum().backward()
    exact = hsic([gaussian_kernel(x), linear_kernel(y)], [z.detach().float() for z in half])
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.detach(), exact)
    assert all(z.grad is not None and z.grad.dtype == torch.bfloat16 for z in half)


def test_memory_format_changes_nothing_and_the_gradient_has_it() -> None:
    _, y, (z, _) = batch(12)
    gradients = {}
    for memory_format in (torch.contiguous_format, torch.channels_last):
        layer = z.clone(memory_format=memory_format).requires_grad_()
        hsic([linear_kernel(y)], [layer]).sum().backward()
        assert layer.grad is not None
        assert layer.grad.is_contiguous(memory_format=memory_format)
        gradients[memory_format] = layer.grad
    torch.testing.assert_close(gradients[torch.channels_last], gradients[torch.contiguous_format])


def test_nan_activations_give_nan_and_do_not_raise() -> None:
    x, _, (z, _) = batch(8, dtype=torch.float32)
    z[3, 0] = torch.nan
    assert hsic([gaussian_kernel(x)], [z]).isnan().all()


def test_batches_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sizes \[4, 5\]"):
        hsic([torch.eye(4)], [torch.rand(5, 2)])
