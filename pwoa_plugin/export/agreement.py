"""How far a file answers as the network that it was made of."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from .._checked import Amount, Record
from .._logits import Output, logits_of
from .._modes import modes_kept
from ..removal.inputs import largest_difference


class Agreement(Record):
    """Two networks on the same images.

    Attributes:
        images: how many.
        same: on how many both answer the same class.
        difference: the largest of the logits, relative to the largest absolute logit.
    """

    images: Amount
    same: Amount
    difference: Annotated[float, Field(ge=0)]

    def __str__(self) -> str:
        return f"the same class on {self.same:,} of {self.images:,} images, logits at most {self.difference:.1e} apart"


def compared(
    network: nn.Module, other: nn.Module, images: Tensor, *, output: Output = None, batch_size: int = 256
) -> Agreement:
    """Ask a network and a file made of it about the same images ``(N, C, H, W)``, in eval mode.

    Args:
        network: the one that differences are relative to.
        other: the file, as `Format.read` gives it.
        images: as both take them.
        output: which part of what they return has the logits.
        batch_size: images at a time.
    """
    answers = []
    for each in (network, other):
        with torch.no_grad(), modes_kept(each):
            each.eval()
            batches = images.split(batch_size)
            answers.append(torch.cat([logits_of(each(x), len(x), output).float().cpu() for x in batches]))
    same = int((answers[0].argmax(1) == answers[1].argmax(1)).sum())
    return Agreement(images=len(images), same=same, difference=largest_difference(answers[:1], answers[1:]))
