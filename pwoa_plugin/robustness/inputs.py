"""What `evaluate` is given, checked before any attack runs. Every message names field, value and cure."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .._pixels import GREY_LEVEL, refuse_radius_of_other_pixels
from ..errors import InputError
from ..models.normalisation import normalisation_of
from .attacks import NORMS, Attack, make_attack
from .protocol import Protocol, load_protocol

__all__ = [
    "Images",
    "as_attacks",
    "as_device",
    "as_protocol",
    "check_eps",
    "check_labels",
    "check_norm",
    "check_normalisation",
    "check_pixel_range",
    "check_step_size",
    "collect",
]

_ROUNDING = 1e-6  # of the pixel range: what resizing or a dtype may add to a valid image


def _is_number(value: object) -> bool:
    numbers = (int, float, np.integer, np.floating)
    return isinstance(value, numbers) and not isinstance(value, bool) and math.isfinite(value)


def check_pixel_range(pixel_range: tuple[float, float]) -> tuple[float, float]:
    """``(low, high)`` as floats.

    Raises:
        ValueError: it is no pair of finite numbers with low < high.
    """
    try:
        low, high = pixel_range
    except (TypeError, ValueError):
        low = high = math.nan
    if not _is_number(low) or not _is_number(high) or not low < high:
        raise InputError(f"pixel_range={pixel_range!r} is no range; give (low, high) with low < high")
    return float(low), float(high)


def check_norm(norm: str) -> str:
    """``norm`` as reports have it.

    Raises:
        ValueError: attacks are run in no such norm.
    """
    by_lower = {name.lower(): name for name in NORMS}
    if not isinstance(norm, str) or norm.lower() not in by_lower:
        raise InputError(f"norm={norm!r} is unknown; use {' or '.join(NORMS)}")
    return by_lower[norm.lower()]


def check_eps(eps: float | None, pixel_range: tuple[float, float], norm: str = "Linf", n_pixels: int = 1) -> float:
    """``eps`` as a float.

    Args:
        eps: radius in pixel units.
        pixel_range: ``(low, high)`` of a valid image.
        norm: of the ball.
        n_pixels: values in an image, on which the widest L2 ball depends.

    Raises:
        ValueError: it is not positive, reaches beyond all valid images, or is of other units.
    """
    if eps is None:
        raise InputError("eps is missing; give the radius in pixel units, such as 8/255")
    if not _is_number(eps) or eps <= 0:
        raise InputError(f"eps={eps!r} is no radius; give a positive number of pixel units, such as 8/255")
    span = pixel_range[1] - pixel_range[0]
    if eps > span * (math.sqrt(n_pixels) if norm == "L2" else 1):
        meant = f"; did you mean {eps:g}/255?" if pixel_range == (0.0, 1.0) and eps <= 255 else ""
        cure = meant or "; give eps in the units of the pixels"
        raise InputError(f"eps={eps!r} is wider than pixel_range={pixel_range}{cure}")
    refuse_radius_of_other_pixels(eps, pixel_range)
    return float(eps)


def check_normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int, model: nn.Module | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """``(mean, std)`` by channel, or None where neither is given.

    Raises:
        ValueError: one is given without the other, they are not for so many channels, a ``std`` is not positive, or
            the model normalises already.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise InputError(f"{'mean' if mean is None else 'std'} is missing; mean and std go together")
    given = _by_channel("mean", mean, channels), _by_channel("std", std, channels)
    if not all(value > 0 for value in given[1]):
        raise InputError(f"std={given[1]} is not positive; give the standard deviation of each channel")
    if model is not None and normalisation_of(model) is not None:
        raise InputError("mean and std are given, and the model normalises already; give them in one place")
    return given


def _by_channel(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != channels or not all(map(math.isfinite, numbers)):
        raise InputError(f"{name}={values!r} does not fit images of {channels} channels; give one number each")
    return numbers


def check_step_size(step_size: float | None) -> float | None:
    """``step_size`` as a float, or None.

    Raises:
        ValueError: it is not positive.
    """
    if step_size is None:
        return None
    if not _is_number(step_size) or step_size <= 0:
        raise InputError(f"step_size={step_size!r} is no step; give a positive number of pixel units, or None")
    return float(step_size)


def as_attacks(attacks: str | Attack | Iterable[str | Attack]) -> list[Attack]:
    """The attacks, made from their names where names are given.

    Raises:
        ValueError: there is none, a name is unknown or comes twice, or an item is no attack.
        ModuleNotFoundError: an attack's package is missing.
    """
    made: list[Attack] = []
    for item in [attacks] if isinstance(attacks, (str, Attack)) else list(attacks):
        attack = make_attack(item) if isinstance(item, str) else item
        if not isinstance(attack, Attack):
            raise InputError(f"attacks: {item!r} is no attack; give a name or an instance of Attack")
        if attack.name in {other.name for other in made}:
            raise InputError(f"attacks: {attack.name!r} comes twice; give one of them another name=")
        attack.require()
        made.append(attack)
    if not made:
        raise InputError("attacks is empty; give one at least, such as 'PGD-20'")
    return made


def as_protocol(
    protocol: str | os.PathLike[str] | Protocol | None,
    attacks: str | Attack | Iterable[str | Attack] | None,
    default: str,
) -> Protocol:
    """The protocol meant; one named ``custom`` where attacks are given in its place.

    Args:
        protocol: see `load_protocol`.
        attacks: see `as_attacks`.
        default: name of the protocol where neither is given.

    Raises:
        ValueError: both are given, or one is off; see `load_protocol` and `as_attacks`.
        ModuleNotFoundError: an attack's package is missing.
    """
    if attacks is None:
        how = load_protocol(default if protocol is None else protocol)
        return replace(how, attacks=tuple(as_attacks(how.attacks)))
    if protocol is not None:
        name = protocol.name if isinstance(protocol, Protocol) else os.fspath(protocol)
        raise InputError(f"protocol={name!r} and attacks are given; give one of them")
    return Protocol(name="custom", version=1, attacks=tuple(as_attacks(attacks)))


def as_device(device: str | torch.device | None, default: torch.device) -> torch.device:
    """The device meant, ``default`` for None.

    Raises:
        ValueError: there is no such device.
    """
    if device is None:
        return default
    try:
        # An allocation tells what a name alone does not: an absent GPU, a wrong index.
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise InputError(f"device={str(device)!r} cannot be used ({reason}); give one torch sees") from error


class Images(NamedTuple):
    """What `evaluate` judges by.

    Attributes:
        images: ``(N, C, H, W)`` float32, on the CPU.
        labels: ``(N,)`` int64, on the CPU.
        width: columns of the labels, where they were one-hot; else None.
    """

    images: Tensor
    labels: Tensor
    width: int | None = None

    def as_given(self) -> tuple[Tensor, Tensor]:
        """Images and labels for another `collect`: one-hot where they came so, that their width is checked again."""
        return self.images, self.labels if self.width is None else nn.functional.one_hot(self.labels, self.width)


def collect(data: Any, pixel_range: tuple[float, float]) -> Images:
    """All images and labels, in the order they come.

    Args:
        data: a pair of tensors (or arrays), images ``(N, C, H, W)`` and labels, ``(N,)`` or one-hot; or an iterable of
            such pairs, a ``DataLoader`` say.
        pixel_range: ``(low, high)`` of a valid image.

    Raises:
        ValueError: there are no images, or images or labels are of another kind, or outside their range.
    """
    batches = [data] if _is_pair_of_arrays(data) else data
    if not isinstance(batches, Iterable):
        raise InputError(f"data is a {type(data).__name__}; give a DataLoader or a pair of tensors (images, labels)")
    images, labels, widths = [], [], set()
    for batch in batches:
        if not _is_pair_of_arrays(batch):
            kind = type(batch).__name__
            raise InputError(f"data: a batch is a {kind}, not a pair of tensors; have it give (images, labels)")
        x, y = torch.as_tensor(batch[0]), torch.as_tensor(batch[1])
        if y.dim() == 2 and y.shape[1] > 1:
            widths.add(y.shape[1])
            y = _from_one_hot(y)
        _check_batch(x, y)
        images.append(x.detach().to("cpu", torch.float32))
        labels.append(y.detach().to("cpu", torch.int64))
    if not images or not sum(map(len, images)):
        raise InputError("data holds no images; give one at least (a used-up iterator gives none)")
    if len(shapes := {tuple(x.shape[1:]) for x in images}) > 1:
        raise InputError(f"data: images have shapes {sorted(shapes)}; resize them to one")
    if len(widths) > 1:
        raise InputError(f"data: one-hot labels have {sorted(widths)} columns; give one for each class")
    # Contiguous, since pyautoattack views gradients as rows.
    whole = _checked_pixels(torch.cat(images).contiguous(), pixel_range)
    return Images(whole, torch.cat(labels), next(iter(widths), None))


def _from_one_hot(y: Tensor) -> Tensor:
    if y.is_complex() or not bool(((y == 0) | (y == 1)).all()) or not bool((y != 0).sum(1).eq(1).all()):
        raise InputError(f"data: labels have shape {tuple(y.shape)} and are not one-hot; give labels.argmax(1)")
    return y.to(torch.uint8).argmax(1)


def _is_pair_of_arrays(item: object) -> bool:
    return (
        isinstance(item, (tuple, list))
        and len(item) == 2
        and all(isinstance(part, (Tensor, np.ndarray)) for part in item)
    )


def _check_batch(x: Tensor, y: Tensor) -> None:
    if x.dim() != 4:
        cure = "wrap the Dataset in a DataLoader" if x.dim() == 3 else "reshape them"
        raise InputError(f"data: images have shape {tuple(x.shape)}, not (N, C, H, W); {cure}")
    if not x.is_floating_point():
        raise InputError(
            f"data: images are {x.dtype}; convert them to float32 in pixel_range (0 to 255: divide by 255)"
        )
    if y.dim() == 2:
        raise InputError(f"data: labels have shape {tuple(y.shape)}, not (N,); give labels.squeeze(1)")
    if y.dim() != 1:
        raise InputError(f"data: labels have shape {tuple(y.shape)}, not (N,); give one class for each image")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise InputError(f"data: labels are {y.dtype}; give the classes as int64")
    if len(x) != len(y):
        raise InputError(f"data: {len(x)} images come with {len(y)} labels; give one label for each image")


def _checked_pixels(images: Tensor, pixel_range: tuple[float, float]) -> Tensor:
    low, high = pixel_range
    if not bool(torch.isfinite(images).all()):
        raise InputError("data: images hold NaN or infinite pixels; mend or leave out those images")
    least, most = float(images.min()), float(images.max())
    rounding = _ROUNDING * (high - low)
    if least < low - rounding or most > high + rounding:
        eight_bit = pixel_range == (0.0, 1.0) and least >= 0 and 8 < most <= 255  # normalised images are below 0 too
        cure = (
            "divide them by 255"
            if eight_bit
            else "give images as they are and mean and std apart (or normalise inside the model), "
            "or give the pixel_range of these images"
        )
        raise InputError(f"data: images span [{least:.4g}, {most:.4g}], outside pixel_range={pixel_range}; {cure}")
    if most - low <= GREY_LEVEL * (high - low):
        raise InputError(
            f"data: images span [{least:.4g}, {most:.4g}], a 255th of pixel_range={pixel_range} or less, as if divided "
            "by 255 once too often; give them in that range, or give the pixel_range of these images"
        )
    return images.clamp(low, high)


def check_labels(labels: Tensor, n_classes: int, width: int | None = None) -> None:
    """Check that labels are classes of the model.

    Args:
        labels: ``(N,)``.
        n_classes: of the model.
        width: columns that one-hot labels had.

    Raises:
        ValueError: one is below 0, or ``n_classes`` or more, or ``width`` is another number.
    """
    if width is not None and width != n_classes:
        raise InputError(f"data: labels are one-hot over {width} classes, and the model has {n_classes}; give as many")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= n_classes:
        raise InputError(
            f"data: labels span {least}..{most}, the model has classes 0..{n_classes - 1}; number them from 0"
        )
