"""Random crop and flip of a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING = 4  # pixels on each side, before the crop


def draw_crops_and_flips(images: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Corners, int64 ``(images, 2)``, row and column from 0 to 8; flips, bool ``(images,)``, half of them true."""
    corners = torch.randint(0, 2 * PADDING + 1, (images, 2), generator=generator)
    flips = torch.rand(images, generator=generator) < 0.5
    return corners, flips


def crop_and_flip(x: Tensor, corners: Tensor, flips: Tensor) -> Tensor:
    """Pad images ``(N, C, H, W)`` by 4 black pixels, crop each at its corner, mirror those where ``flips`` is true."""
    corners, flips = corners.to(x.device), flips.to(x.device)
    height, width = x.shape[2:]
    windows = F.pad(x, [PADDING] * 4).unfold(2, height, 1).unfold(3, width, 1)
    cut = windows[torch.arange(len(x), device=x.device), :, corners[:, 0], corners[:, 1]]
    return torch.where(flips.view(-1, 1, 1, 1), cut.flip(3), cut)
