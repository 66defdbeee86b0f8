from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pwoa_plugin.data.augment import crop_and_flip, draw_crops_and_flips


@given(n=st.integers(1, 5), channels=st.sampled_from([1, 3]), height=st.integers(1, 9), width=st.integers(1, 9))
def test_batch_is_the_loop_over_images(n: int, channels: int, height: int, width: int) -> None:
    random = torch.Generator().manual_seed(n * height + width)
    x = torch.randint(1, 256, (n, channels, height, width), generator=random).byte()
    corners, flips = draw_crops_and_flips(n, random)
    got = crop_and_flip(x, corners, flips)
    for i in range(n):
        padded = np.pad(x[i].numpy(), ((0, 0), (4, 4), (4, 4)))
        row, column = corners[i].tolist()
        cut = padded[:, row : row + height, column : column + width]
        assert np.array_equal(got[i].numpy(), cut[:, :, ::-1] if flips[i] else cut)
    assert got.dtype == x.dtype


def test_draws_cover_every_corner_evenly() -> None:
    corners, flips = draw_crops_and_flips(90_000, torch.Generator().manual_seed(0))
    for counts in (corners[:, 0].bincount(), corners[:, 1].bincount()):
        assert len(counts) == 9
        assert (counts.float() / 10_000 - 1).abs().max() < 0.05
    assert abs(float(flips.float().mean()) - 0.5) < 0.01
