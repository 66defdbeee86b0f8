"""Global random state, seeded for a while and given back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["check_seed", "seeded"]

_SEED_LIMIT = 2**32  # numpy's global generator takes no more than 32 bits


def check_seed(seed: int) -> int:
    """The seed itself, once it is known to suit every generator that `seeded` seeds.

    Raises:
        ValueError: ``seed`` is no integer in [0, 2**32).
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < _SEED_LIMIT:
        raise ValueError(f"seed={seed!r} does not seed numpy; give an integer from 0 to {_SEED_LIMIT - 1}")
    return int(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch (CPU and every CUDA device), numpy and `random`; put all states back on leaving.

    The states come back when the body raises, too. Also works as a decorator.

    Args:
        seed: integer in [0, 2**32), numpy's limit.

    Raises:
        ValueError: ``seed`` is no such integer; no state has been touched then.
    """
    seed = check_seed(seed)
    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    numpy_state = np.random.get_state()
    python_state = random.getstate()
    try:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
