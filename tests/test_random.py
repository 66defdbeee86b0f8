from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pwoa_plugin._random import happens, random_state, seeded, set_random_state


def draws() -> tuple[float, float, float]:
    return torch.rand(1).item(), float(np.random.rand()), random.random()


def test_the_same_seed_gives_the_same_draws_and_another_seed_gives_others() -> None:
    with seeded(3):
        first = draws()
    with seeded(3):
        again = draws()
    with seeded(4):
        others = draws()
    assert first == again
    assert all(a != b for a, b in zip(first, others, strict=True))


def test_what_happens_in_a_share_does_not_depend_on_what_was_drawn_before() -> None:
    first = [happens(0.25, 7, step, 1) for step in range(2000)]
    with seeded(3):
        assert [happens(0.25, 7, step, 1) for step in range(2000)] == first
        state = torch.get_rng_state()
        assert all(happens(1.0, 7, step, 1) for step in range(9))
        assert torch.equal(torch.get_rng_state(), state)
    assert sum(first) / 2000 == pytest.approx(0.25, abs=0.04)
    others = [happens(0.25, 7, step, 2) for step in range(2000)]
    assert sum(map(all, zip(first, others, strict=True))) / 2000 == pytest.approx(1 / 16, abs=0.02)  # independent


@pytest.mark.parametrize("fails", [False, True])
def test_states_come_back_even_when_the_body_raises(fails: bool) -> None:
    with seeded(7):
        expected = draws()
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    try:
        with seeded(0):
            draws()
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert draws() == expected


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, "0", None])
def test_a_seed_that_numpy_cannot_take_is_refused_before_anything_is_seeded(seed: object) -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"^seed=.*give an integer"), seeded(seed):  # type: ignore[arg-type]
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_a_saved_state_is_restored() -> None:
    with seeded(1):
        random.gauss(0, 1)  # leaves a second number for the next call
        np.random.normal()
        state = random_state()
        expected = draws(), random.gauss(0, 1), float(np.random.normal())
        draws()
        set_random_state({name: tensor.clone() for name, tensor in state.items()})
        assert (draws(), random.gauss(0, 1), float(np.random.normal())) == expected
