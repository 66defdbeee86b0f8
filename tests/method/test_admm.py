from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pwoa_plugin.method.admm import ADMM, self_scaled_updates
from pwoa_plugin.method.sparsity import make_sparsity_set


def keep(k: int) -> object:
    return lambda value: make_sparsity_set("unstructured").mask(value, k)


def make(weight: Tensor, k: int = 3, **values: float) -> ADMM:
    fields = {"rho": 0.5, "growth": 2.0, "rho_max": 3.0} | values
    return ADMM({"w": weight}, {"w": keep(k)}, **fields)  # type: ignore[dict-item]


@pytest.mark.parametrize("rescale", [False, True])
def test_updates_are_the_formulas(rescale: bool) -> None:
    weight = nn.Parameter(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))
    admm = make(weight, rescale=rescale)
    z = weight.detach() * make_sparsity_set("unstructured").mask(weight, 3)
    u = torch.zeros_like(weight)
    assert torch.equal(admm.z["w"], z)
    rho = 0.5
    for seed in range(4):
        with torch.no_grad():
            weight.add_(0.1 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed + 1)))
        assert admm.penalty().item() == pytest.approx(rho / 2 * float((weight.detach() - z + u).square().sum()))
        assert admm.residual() == pytest.approx(float((weight.detach() - z).norm() / weight.detach().norm()), rel=1e-5)
        admm.dual_update()
        shifted = weight.detach() + u
        z = shifted * make_sparsity_set("unstructured").mask(shifted, 3)
        u = u + weight.detach() - z
        grown = min(rho * 2, 3.0)
        u = u * (rho / grown) if rescale else u  # the multiplier rho * U stays
        rho = grown
        assert torch.equal(admm.z["w"], z)
        assert torch.allclose(admm.u["w"], u, atol=1e-7)
        assert admm.rho == rho
    assert rho == 3.0
    assert admm.updates == 4


def test_gradient_by_hand_is_the_penaltys() -> None:
    weight = nn.Parameter(torch.randn(6, generator=torch.Generator().manual_seed(0)))
    admm = make(weight)
    admm.dual_update()
    (expected,) = torch.autograd.grad(admm.penalty(), weight)
    weight.grad = torch.ones(6)
    admm.add_gradient()
    torch.testing.assert_close(weight.grad, expected + 1)


def test_converges_to_the_best_sparse_solution_of_a_quadratic() -> None:
    """min |w - a|^2 with at most 3 weights: the three largest of a, exactly."""
    a = torch.tensor([3.0, -2.5, 0.4, 2.0, -0.3, 0.1])
    weight = nn.Parameter(torch.zeros(6))
    with torch.no_grad():
        weight.copy_(a)
    admm = make(weight, rho=0.5, growth=1.0, rho_max=0.5)
    optimizer = torch.optim.SGD([weight], lr=0.2)
    for _ in range(60):
        for _ in range(20):
            optimizer.zero_grad()
            ((weight - a).square().sum() + admm.penalty()).backward()
            optimizer.step()
        admm.dual_update()
    assert admm.residual() < 1e-3
    assert torch.equal(admm.z["w"] != 0, a.abs() > 1)
    torch.testing.assert_close(admm.z["w"][a.abs() > 1], a[a.abs() > 1], atol=1e-2, rtol=0)


@given(steps=st.integers(1, 5000), rho=st.floats(1e-4, 0.5))
def test_rho_reaches_its_cap_within_the_steps_there_are(steps: int, rho: float) -> None:
    interval, growth = self_scaled_updates(steps, rho=rho, rho_max=1.0)
    updates = [step for step in range(1, steps) if step % interval == 0]
    assert len(updates) <= 8
    assert rho * growth ** max(1, len(updates)) == pytest.approx(1.0)


def test_weights_that_are_projected_together() -> None:
    """One function of all weights, which keeps the rows with the largest norm over both."""
    torch.manual_seed(0)
    weights = {"a": torch.randn(4, 3, requires_grad=True), "b": torch.randn(4, 5, requires_grad=True)}

    def rows(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        norms = values["a"].square().sum(1) + values["b"].square().sum(1)
        keep = torch.zeros(4, dtype=torch.bool)
        keep[norms.topk(2).indices] = True
        return {name: keep[:, None].expand_as(value) for name, value in values.items()}

    admm = ADMM(weights, rows, rho=1.0, growth=1.0, rho_max=1.0)
    admm.dual_update()
    for _ in range(2):
        shifted = {name: weight.detach() + admm.u[name] for name, weight in weights.items()}
        masks = rows(shifted)
        admm.dual_update()
        for name in weights:
            assert torch.equal(admm.z[name], shifted[name] * masks[name])
            assert torch.equal(admm.u[name], shifted[name] - admm.z[name])
        assert torch.equal(admm.z["a"].any(1), admm.z["b"].any(1))
