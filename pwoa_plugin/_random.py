"""Global random state: seeded for a while, saved, restored."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from .errors import InputError

_SEED_LIMIT = 2**32  # numpy's global generator takes no more than 32 bits


def check_seed(seed: int) -> int:
    """The seed as an integer that every generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < _SEED_LIMIT:
        raise InputError(f"seed={seed!r} cannot seed numpy; give an integer from 0 to {_SEED_LIMIT - 1}")
    return int(seed)


def _hashed(*numbers: int) -> int:
    """32 bits that follow from these numbers alone."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_of_part(seed: int, part: int) -> int:
    """The seed of one part of something seeded, such as a batch, so that no other part changes its draws.

    The first part, 0, has the whole's seed.
    """
    return _hashed(seed, part) if part else seed


def seed_all(seed: int) -> None:
    """Seed torch (CPU and every CUDA device), numpy and `random`."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch (CPU and every CUDA device), numpy and `random`; restore all states on leaving."""
    seed = check_seed(seed)
    before = random_state()
    try:
        seed_all(seed)
        yield
    finally:
        set_random_state(before)


_default_rng = np.random.default_rng


def _drawn(seed: object) -> object:
    return np.random.randint(_SEED_LIMIT, dtype=np.uint32) if seed is None else seed


class _LikeRandomState(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, np.random.mtrand.RandomState)


class _SeededRandomState(np.random.mtrand.RandomState, metaclass=_LikeRandomState):
    def __init__(self, seed: object = None) -> None:
        super().__init__(_drawn(seed))  # type: ignore[arg-type]


@contextmanager
def generators_seeded() -> Iterator[None]:
    """Have ``np.random.RandomState()`` and ``default_rng()``, made without a seed, draw theirs from numpy's global
    state instead of the operating system: some attacks of ART make such generators."""
    np.random.RandomState = _SeededRandomState  # type: ignore[misc]
    np.random.default_rng = lambda seed=None: _default_rng(_drawn(seed))  # type: ignore[arg-type]
    try:
        yield
    finally:
        np.random.RandomState, np.random.default_rng = np.random.mtrand.RandomState, _default_rng  # type: ignore[misc]


def happens(share: float, *of: int) -> bool:
    """True in a random ``share`` of all ``of``; the same in every process, whatever was drawn before."""
    return share >= 1 or _hashed(*of) < share * 2**32


def random_state() -> dict[str, torch.Tensor]:
    """The state of every global generator that `seeded` seeds, as CPU tensors, to be saved in a file."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda.{i}": saved for i, saved in enumerate(torch.cuda.get_rng_state_all())}
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    state["numpy"] = torch.from_numpy(np.append(keys.astype(np.int64), [position, has_gauss]))
    state["numpy.gauss"] = torch.tensor(gauss, dtype=torch.float64)
    version, words, next_gauss = random.getstate()
    state["python"] = torch.tensor([version, *words])
    state["python.gauss"] = torch.tensor(float("nan") if next_gauss is None else next_gauss, dtype=torch.float64)
    return state


def set_random_state(state: Mapping[str, torch.Tensor]) -> None:
    """Restore what `random_state` returned; GPUs that are not here are skipped."""
    torch.set_rng_state(state["torch"])
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda.{i}" in state:
            torch.cuda.set_rng_state(state[f"cuda.{i}"], i)
    *keys, position, has_gauss = state["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, float(state["numpy.gauss"])))
    version, *words = state["python"].tolist()
    gauss = float(state["python.gauss"])
    random.setstate((version, tuple(words), None if math.isnan(gauss) else gauss))
