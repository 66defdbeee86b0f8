"""Trials of a network before training: its logits and its input gradients."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .._logits import logits_of
from .._random import seeded
from .._text import one_line
from ..errors import InputError
from .batches import described
from .distillation import gradient_loss


def find_classes(model: nn.Module, images: Tensor) -> int:
    """The number of a network's classes, by a forward of two images ``(N, C, H, W)`` in eval mode.

    Raises:
        InputError: it does not take the images, does not return finite logits ``(N, classes)``, or changes the images
            in place.
    """
    given = images[:2].clone()
    version = given._version
    try:
        with torch.no_grad():
            logits = logits_of(model(given))
    except (RuntimeError, IndexError) as error:
        raise InputError(
            f"the model does not take images {tuple(images.shape[1:])} ({one_line(error)}); give others"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise InputError(f"the model returns {described(logits)}; wrap it so that it returns logits (N, classes)")
    if not logits.isfinite().all():
        raise InputError("the model's logits are not finite before training; load a sound checkpoint")
    if given._version != version:
        raise InputError(
            "the model changes its input images in place, but student and teacher share them; write its first steps "
            "without in-place operations (x = x - mean, inplace=False)"
        )
    return logits.shape[1]


def try_input_gradients(teacher: nn.Module, images: Tensor, weight: float) -> None:
    """InputError that names ``distillation.gradient_weight``, unless a copy of the network is twice differentiable."""
    student = copy.deepcopy(teacher)
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        with seeded(0), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            x = images.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
            gradient_loss(logits_of(student(x)), logits_of(teacher(x)), x).backward()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"distillation.gradient_weight={weight:g} needs a network that can be differentiated twice "
            f"({one_line(error)}); set it to 0, or for attention train inside "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
        ) from error
