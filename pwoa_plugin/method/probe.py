"""Trials of a network before training: its logits and its input gradients."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from .._logits import Output, are_probabilities, logits_of, unused_note
from .._modes import modes_kept, train_mode
from .._network import check_trainable, naming_images
from .._random import seeded
from .._text import named, one_line
from .._wrapped import deep_copy
from ..errors import InputError
from .adversarial import gradient_of
from .distillation import gradient_loss

_logger = logging.getLogger(__name__)


def find_classes(model: nn.Module, images: Tensor, output: Output = None) -> int:
    """The number of a network's classes, by a forward of two images ``(N, C, H, W)`` in eval mode.

    Raises:
        InputError: see `answer_of` and `classes_in`.
    """
    given = images[:2].clone()
    return classes_in(answer_of(model, given), given, output)


def check_answer(student: nn.Module, logits: Tensor, classes: int | None) -> None:
    """InputError unless a student can be trained by its logits ``(N, C)``, and has the teacher's ``classes``."""
    if not logits.requires_grad and torch.is_grad_enabled():
        check_trainable(student, "student")
        raise InputError(
            "the model's logits carry no gradient, so it cannot be trained; take no_grad, detach, numpy or "
            "quantisation out of its forward"
        )
    if logits.shape[1] != classes:
        raise InputError(
            f"the student has {logits.shape[1]} classes, the teacher {classes}; give a teacher of the same classes"
        )


def answer_of(model: nn.Module, images: Tensor) -> Any:
    """What a network returns for images ``(N, C, H, W)``; InputError if it does not take them."""
    with naming_images(images), torch.no_grad():
        return model(images)


def classes_in(answer: Any, images: Tensor, output: Output = None) -> int:
    """The number of classes in an `answer_of` a fresh copy of images.

    Raises:
        InputError: there are no finite logits ``(N, classes)`` in it, or the network has changed the images in place.
    """
    logits = logits_of(answer, len(images), output)
    if note := unused_note(answer, output):
        _logger.info("%s", note)
    if not logits.isfinite().all():
        raise InputError("the model's logits are not finite before training; load a sound checkpoint")
    if are_probabilities(logits):
        _logger.warning(
            "the model returns probabilities, not logits, and distillation takes their softmax again; take the softmax "
            "off the model, or return its logarithm"
        )
    if images._version:
        raise InputError(
            "the model changes its input images in place, but student and teacher share them; write its first steps "
            "without in-place operations (x = x - mean, inplace=False)"
        )
    return logits.shape[1]


def try_training_mode(student: nn.Module, images: Tensor, output: Output = None) -> None:
    """InputError if a network has no logits in what it returns in training mode, such as those of auxiliary heads.

    Buffers (BatchNorm's statistics) and the random state are restored.
    """
    # Others in their place, not copied back: autograd may hold them for a backward to come.
    kept = [(module, dict(module._buffers)) for module in student.modules()]
    try:
        for module, buffers in kept:
            module._buffers.update(
                {name: buffer if buffer is None else buffer.clone() for name, buffer in buffers.items()}
            )
        with modes_kept(student), seeded(0), torch.no_grad():
            train_mode(student)
            answer = student(images[:2].clone())
    except (RuntimeError, ValueError):  # such as BatchNorm's of few images: training says so where it matters
        return
    except Exception as error:
        raise InputError(
            f"the model fails in training mode ({named(error)}); let forward(x) return logits there, too"
        ) from error
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)
    try:
        logits_of(answer, len(images[:2]), output)
    except InputError as error:
        raise InputError(f"in training mode: {error}") from None


def try_examples(teacher: nn.Module, images: Tensor, attack: str, output: Output = None) -> None:
    """InputError that names ``adversarial.attack``, unless a network's loss has a gradient at its images."""
    try:
        with torch.enable_grad():
            classes = torch.arange(len(images), device=images.device) % 2
            there = gradient_of(lambda x: logits_of(teacher(x), len(x), output), classes)(images)
    except RuntimeError as error:
        raise InputError(
            f"adversarial.attack={attack!r} follows the gradient at the images, and the model has none "
            f"({one_line(error)}); leave adversarial out"
        ) from error
    if not there.any():
        raise InputError(
            f"adversarial.attack={attack!r} follows the gradient at the images, which is 0 everywhere; take rounding "
            "and quantisation out of the model's forward, or leave adversarial out"
        )


def try_input_gradients(teacher: nn.Module, images: Tensor, weight: float, output: Output = None) -> None:
    """InputError that names ``distillation.gradient_weight``, unless a copy of the network is twice differentiable."""
    student = deep_copy(teacher)
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        with seeded(0), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            x = images.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
            answers = (logits_of(network(x), len(x), output) for network in (student, teacher))
            gradient_loss(next(answers), next(answers), x).backward()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"distillation.gradient_weight={weight:g} needs a network that can be differentiated twice "
            f"({one_line(error)}); set it to 0, or for attention train inside "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
        ) from error
