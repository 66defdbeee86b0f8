from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pwoa_plugin.method.perturbation import (
    PERTURBATIONS,
    BlockSign,
    Patterns,
    PerturbationConfig,
    _cells_of_pixels,
    _sign_grid,
    largest_agreeing_radius,
)

KINDS = sorted(PERTURBATIONS)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    share=st.floats(0, 1),
    low=st.floats(-2, 0),
    width=st.floats(0.5, 3),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 33), st.integers(1, 33)),
    seed=st.integers(0, 99),
)
def test_stays_in_the_ball_and_in_the_pixel_range(
    kind: str, share: float, low: float, width: float, shape: tuple[int, ...], seed: int
) -> None:
    x = low + width * torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    before = x.clone()
    radius = share * (low + width - low)
    perturb = PerturbationConfig(kind=kind).make(radius, (low, low + width))
    got = perturb(x, torch.Generator().manual_seed(seed))
    assert torch.equal(x, before)
    assert got.shape == x.shape
    assert got.dtype == x.dtype
    if kind != "none":
        assert got.min() >= low - 1e-5
        assert got.max() <= low + width + 1e-5
    if kind != "gaussian":
        assert (got - x).abs().max() <= radius + 1e-5
    assert torch.equal(got, perturb(x, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_draws_differ_between_images_and_calls(kind: str) -> None:
    x = torch.full((64, 2, 28, 28), 0.5)
    perturb = PERTURBATIONS[kind](radius=0.3)
    random = torch.Generator().manual_seed(0)
    first, second = perturb(x, random), perturb(x, random)
    assert (first != second).flatten(1).any(1).float().mean() > 0.9
    assert len(first.flatten(1).unique(dim=0)) == 64
    assert (first[:, 0] != first[:, 1]).flatten(1).any(1).float().mean() > 0.9  # channels are drawn apart


@pytest.mark.parametrize("kind", ["patterns", "sign", "block"])
def test_sign_kinds_are_signs(kind: str) -> None:
    perturb = PERTURBATIONS[kind](radius=1)
    p = perturb.direction(torch.zeros(50, 3, 28, 28), torch.Generator().manual_seed(0))
    assert set(p.unique().tolist()) == {-1.0, 1.0}
    assert abs(p.mean()) < 0.05


def test_radius_is_scaled_by_the_root_of_a_uniform() -> None:
    x = torch.full((4000, 1, 2, 2), 0.5)
    got = PERTURBATIONS["sign"](radius=0.4)(x, torch.Generator().manual_seed(0))
    share = (got - x).abs().amax((1, 2, 3)) / 0.4
    # P(sqrt(u) <= q) = q^2
    for q in (0.3, 0.6, 0.9):
        assert (share <= q).float().mean().item() == pytest.approx(q**2, abs=0.03)


def transitions(p: Tensor, dim: int) -> Tensor:
    return (p.diff(dim=dim) != 0).flatten(1).float().mean(1)


def test_block_cells_have_the_scales_that_are_named() -> None:
    p = BlockSign(radius=1, scales=(7,)).direction(torch.zeros(20, 1, 28, 28), torch.Generator().manual_seed(0))
    assert torch.equal(p, p[:, :, ::7, ::7].repeat_interleave(7, 2).repeat_interleave(7, 3))
    large = BlockSign(radius=1, scales=(1, 4)).cells(224, 224)
    assert large == [(1, 1), (32, 32)]  # single pixels stay single, blocks grow with the image


def test_patterns_hold_stripes_and_splices_of_several_scales() -> None:
    p = Patterns(radius=1).direction(torch.zeros(3000, 1, 28, 28), torch.Generator().manual_seed(0))
    down, across = transitions(p, 2), transitions(p, 3)
    assert ((down == 0) & (across > 0.2)).float().mean() > 0.01  # vertical stripes across the whole image
    assert ((across == 0) & (down > 0.2)).float().mean() > 0.01
    assert ((down > 0.4) & (across > 0.4)).float().mean() > 0.01  # single pixels
    # Splices: rougher in one quarter than in another, more often than grids that are not spliced.
    of_cells = _cells_of_pixels(Patterns(radius=1).cells(28, 28), p)
    whole = _sign_grid(p, of_cells, torch.Generator().manual_seed(1))
    assert uneven(p) > 2 * uneven(whole)


def test_autocast_draws_the_same() -> None:
    x = torch.rand(64, 1, 28, 28)
    perturb = PERTURBATIONS["patterns"](radius=0.4)
    exact = perturb(x, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(perturb(x, torch.Generator().manual_seed(0)), exact)


def uneven(p: Tensor) -> float:
    quarters = (p.diff(dim=3) != 0).float()[:, 0].unfold(1, 14, 14).unfold(2, 13, 13).mean((-1, -2)).flatten(1)
    return (quarters.amax(1) - quarters.amin(1) > 0.2).float().mean().item()


class Threshold(nn.Module):
    """Says 1 as long as the mean of the image is above a level."""

    def forward(self, x: Tensor) -> Tensor:
        level = x.flatten(1).amin(1) - 0.25
        return torch.stack([-level, level], 1)


def test_largest_agreeing_radius_is_where_the_model_changes_its_mind() -> None:
    x = torch.full((400, 1, 6, 6), 0.5)
    # A pixel falls by r sqrt(u): predictions hold while r sqrt(u) < .25, for 95 % of u when r = .25 / sqrt(.95).
    found = largest_agreeing_radius(Threshold(), x, PerturbationConfig(kind="sign", agreement=0.95))
    assert found == pytest.approx(0.25 / 0.95**0.5, abs=0.01)
    assert largest_agreeing_radius(Threshold(), x, PerturbationConfig(kind="none")) == 1.0


@pytest.mark.parametrize(
    ("fields", "eps", "radius"),
    [
        ({"kind": "none"}, None, 0.0),
        ({"radius": 0.2}, None, 0.2),
        ({"radius": 0.2}, 0.1, 0.2),
        ({}, 0.1, 0.15),
        ({}, 0.9, 1.0),  # no wider than the range of pixels
        ({}, None, None),
    ],
)
def test_a_radius_that_is_known(fields: dict[str, Any], eps: float | None, radius: float | None) -> None:
    assert PerturbationConfig(**fields).known_radius(eps, (0.0, 1.0)) == pytest.approx(radius)


def test_a_searched_radius_keeps_the_share_of_predictions(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    configs = [PerturbationConfig(agreement=share) for share in (0.99, 0.8)]
    radii = [largest_agreeing_radius(trained, images[0], config) for config in configs]
    assert 0 < radii[0] < radii[1] < 1


def test_options_reach_the_perturbation() -> None:
    made = PerturbationConfig(kind="block", options={"scales": [3]}).make(0.2, (0.0, 2.0))
    assert isinstance(made, BlockSign)
    assert (made.scales, made.radius, made.pixel_range) == ((3,), 0.2, (0.0, 2.0))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"radius": -1.0}, "radius=-1.0"),
        ({"options": {"scales": ()}}, "scales"),
        ({"kind": "pgd"}, "kind='pgd' is unknown"),
    ],
)
def test_bad_input(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PerturbationConfig(**fields)
