"""Images and labels as people have them: one reading for all that prunes and all that judges."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ._logits import described, is_dense
from ._pixels import GREY_LEVEL
from ._reading import NamedSamples, retold
from .errors import InputError

IMAGE_KEYS = ("image", "images", "pixel_values", "x", "img", "input", "inputs")
LABEL_KEYS = ("label", "labels", "y", "target", "targets")

_ROUNDING = 1e-4  # of the pixel range: what resizing or a dtype may add to a valid image
_FORMS = "give a DataLoader, a Dataset, or tensors or arrays (images, labels)"


class Labels(NamedTuple):
    """Classes ``(N,)`` int64, and the columns of one-hot labels; None where labels were given as integers."""

    classes: Tensor
    width: int | None = None
    floats: str = ""  # what they were, if given as floats of 0 and 1: right for two classes only


# -- what holds images ---------------------------------------------------------------------------


def dims(value: Any) -> int | None:
    """The number of dimensions of a tensor, an array, an image or nested sequences; None for anything else."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim
    if _is_picture(value):
        return 3
    if isinstance(value, (int, float, np.generic)):
        return 0
    if isinstance(value, range) or hasattr(value, "__array__"):  # such as a column of pandas
        return np.ndim(value)
    if isinstance(value, (tuple, list)) and value:
        inner = dims(value[0])
        return None if inner is None else inner + 1
    return None


def is_whole(data: Any) -> bool:
    """Whether this is one set of images, with or without labels, and no iterable of batches or samples."""
    if isinstance(data, (Tensor, np.ndarray, Mapping)) or _named_fields(data):
        return True
    if not isinstance(data, (tuple, list)) or not data:
        return False
    if len(data) == 1:
        return isinstance(data, tuple) and isinstance(data[0], (Tensor, np.ndarray))
    images, labels = data[:2]
    texts = isinstance(labels, (tuple, list)) and dims(labels) is None  # refused as labels
    as_labels = labels is None or texts or dims(labels) in (1, 2, 3)
    return as_labels and (isinstance(images, (Tensor, np.ndarray)) or dims(images) == 4)


def whole_set(data: Any, where: str, *, labelled: bool = False) -> tuple[Tensor, Tensor | None]:
    """Images and labels of a whole set as tensors, as many of each."""
    images, labels = split_batch(data, where, labelled=labelled)
    x = tensor_of(images, f"{where}: images")
    y = None if labels is None else _one_labelling(labels, len(x), where)
    if y is not None and len(x) != len(y):
        raise _unequal(where, len(x), len(y))
    return x, y


def samples_of(data: Any) -> Any:
    """``data`` where single samples can be read from it by index: a Dataset, or a list of samples; else None."""
    of_torch = isinstance(data, Dataset) and not isinstance(data, IterableDataset)
    of_hugging_face = hasattr(data, "column_names") and hasattr(data, "__getitem__") and hasattr(data, "__len__")
    a_list = isinstance(data, (tuple, list)) and bool(data) and _is_sample(data[0])
    return data if of_torch or of_hugging_face or a_list else None


def _is_sample(value: Any) -> bool:
    """Whether this is an image with its label, and not a batch of them."""
    value = _named_fields(value) or value
    if isinstance(value, Mapping):
        return [dims(value[key]) for key in IMAGE_KEYS if key in value] == [3]
    if not isinstance(value, (tuple, list)) or not value or dims(value[0]) != 3:
        return _is_picture(value)
    if len(value) == 1 or value[1] is None:
        return isinstance(value, tuple)
    one_hot = dims(value[1]) == 1 and len(value[1]) != len(value[0])  # else grey images and a label for each
    return one_hot or dims(value[1]) == 0


def raw_batches(data: Any, where: str, batch_size: int) -> Iterator[tuple[Any, Any]]:
    """``(images, labels or None)`` of each batch, as they are held; a whole set is one batch. Of dicts labels are
    wanted.
    """
    if is_whole(data):
        yield split_batch(data, where, labelled=True)
    else:
        batches = refuse_no_batches(data, where)
        if (samples := samples_of(data)) is not None:
            batches = loader_of(samples, batch_size, where, labelled=True)
        for batch in retold(iter(batches), where):
            yield split_batch(batch, where, labelled=True)


def refuse_no_batches(data: Any, where: str) -> Any:
    """``data``, unless nothing can be read from it."""
    if isinstance(data, type):
        raise InputError(f"{where} is the class {data.__name__}; {_FORMS}")
    if isinstance(data, (str, bytes)) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise InputError(f"{where} is {'missing' if data is None else f'a {type(data).__name__}'}; {_FORMS}")
    return data


def loader_of(samples: Any, batch_size: int, where: str, *, labelled: bool = False, **options: Any) -> DataLoader[Any]:
    """Batches of samples in any form, also PIL images and, unless they are to be ``labelled``, dicts without labels."""
    gather = functools.partial(_gather, where=where, labelled=labelled)
    return DataLoader(NamedSamples(samples, where), batch_size, collate_fn=gather, **options)


def collates_plainly(loader: DataLoader[Any]) -> bool:
    """Whether a batch holds each of its samples once; a user's own ``collate_fn`` may make anything of them."""
    collate = loader.collate_fn
    return collate is default_collate or getattr(collate, "func", None) is _gather


def split_batch(batch: Any, where: str, *, labelled: bool = False) -> tuple[Any, Any]:
    """``(images, labels or None)`` of a batch: a dict, a tuple or list, images alone, or a list of samples."""
    if isinstance(batch, (tuple, list)) and batch:
        if all(map(_is_sample, batch[:2])):
            return _gather(batch, where, labelled)
        if len(batch) > 1 and dims(batch[0]) == dims(batch[1]) == 3:  # images without labels
            return batch, None
    return _split(batch, where, labelled)


def _split(held: Any, where: str, labelled: bool) -> tuple[Any, Any]:
    """Images and labels of a batch, or image and label of a sample; with ``labelled`` a dict has to name its labels."""
    held = _named_fields(held) or held
    if isinstance(held, Mapping):
        images = _by_key(held, IMAGE_KEYS, "images", where)
        if images is None:
            raise InputError(f"{where} gives a dict with keys {list(held)}; name the images 'image' or 'pixel_values'")
        labels = _by_key(held, LABEL_KEYS, "labels", where)
        if labels is None and labelled:
            raise InputError(f"{where} gives a dict with keys {list(held)}; name the labels 'label' or 'y'")
        return images, labels
    if isinstance(held, (tuple, list)) and held:
        return held[0], held[1] if len(held) > 1 else None
    return held, None


def _named_fields(value: Any) -> dict[str, Any] | None:
    """A namedtuple as a dict, if a field is named as images are."""
    fields = value._asdict() if isinstance(value, tuple) and hasattr(value, "_asdict") else {}
    return fields if fields.keys() & {*IMAGE_KEYS} else None


def _by_key(batch: Mapping[str, Any], keys: Sequence[str], what: str, where: str) -> Any:
    found = [key for key in keys if key in batch]
    if len(found) > 1:
        raise InputError(f"{where} gives a dict with keys {list(batch)}, of which {found} may be {what}; leave one")
    return batch[found[0]] if found else None


def _gather(samples: Sequence[Any], where: str, labelled: bool) -> tuple[Any, Any]:
    pairs = [_split(sample, where, labelled) for sample in samples]
    labels = [label for _, label in pairs]
    if all(label is None for label in labels):
        return tensor_of([image for image, _ in pairs], f"{where}: images"), None
    if any(label is None for label in labels):
        raise InputError(f"{where}: {sum(label is None for label in labels)} of {len(labels)} samples have no label")
    return tensor_of([image for image, _ in pairs], f"{where}: images"), tensor_of(labels, f"{where}: labels")


# -- images --------------------------------------------------------------------------------------


def as_images(x: Any, pixel_range: tuple[float, float], where: str, *, check: bool = True) -> Tensor:
    """Images as floats ``(N, C, H, W)`` in ``pixel_range``, to which rounding is clamped.

    Args:
        x: a tensor, an array, a list of images: floats, or uint8, whose 0 to 255 are scaled to ``pixel_range``.
        pixel_range: ``(low, high)`` of a valid image.
        where: what gives them, for messages.
        check: whether to look at the pixels, too.

    Raises:
        InputError: they are of another form or, with ``check``, not finite or outside the range.
    """
    images = float_images(x, pixel_range, where)
    if check:
        _check_pixels(images, pixel_range, where)
    return images.clamp(*pixel_range)


def float_images(x: Any, pixel_range: tuple[float, float], where: str) -> Tensor:
    """`as_images`, whatever the pixels are."""
    images = tensor_of(x, f"{where}: images")
    if images.dim() != 4:
        cure = "put single images into a DataLoader; add the channel of grey ones by unsqueeze(1)"
        if images.dim() != 3:
            cure = "reshape them"
        raise InputError(f"{where}: images are {described(images)}; give (N, C, H, W): {cure}")
    if _is_channels_last(images.shape):
        if images.dtype != torch.uint8:
            raise InputError(f"{where}: images are {described(images)}, channels last; give images.permute(0, 3, 1, 2)")
        images = images.permute(0, 3, 1, 2)
    if images.dtype == torch.uint8:
        low, high = pixel_range
        return images.contiguous().float().div_(255).mul_(high - low).add_(low)
    if not images.is_floating_point():
        raise InputError(
            f"{where}: images are {described(images)}; give floats within pixel_range, or uint8 from 0 to 255"
        )
    return images


def scale_note(x: Any, pixel_range: tuple[float, float]) -> str | None:
    """What `as_images` does to 8-bit images, for logs and reports; None for others."""
    while isinstance(x, (tuple, list)) and x:
        x = x[0]
    eight_bit = _is_picture(x) or getattr(x, "dtype", None) in (torch.uint8, np.dtype("uint8"))
    return f"images are 8-bit: 0 to 255 are scaled to pixel_range={pixel_range}" if eight_bit else None


def check_contrast(most: float, pixel_range: tuple[float, float], where: str) -> None:
    """InputError if the brightest pixel is next to black."""
    low, high = pixel_range
    if most - low <= GREY_LEVEL * (high - low):
        raise InputError(
            f"{where}: pixels reach {most:.4g} at most, a 255th of pixel_range={pixel_range} or less, as "
            "if divided by 255 once too often; give them in that range, or set pixel_range"
        )


def check_first(x: Tensor, pixel_range: tuple[float, float], where: str) -> None:
    """`check_contrast` of the first images; a few that are all black may be right."""
    if (most := x.max().item()) > pixel_range[0]:
        check_contrast(most, pixel_range, where)


def _check_pixels(x: Tensor, pixel_range: tuple[float, float], where: str) -> None:
    if not x.numel():
        raise InputError(f"{where} gives an empty batch; give natural images")
    low, high = pixel_range
    least, most = (value.item() for value in x.detach().aminmax())
    if not (math.isfinite(least) and math.isfinite(most)):
        raise InputError(f"{where}: images hold NaN or infinite pixels; mend or leave out those images")
    rounding = _ROUNDING * (high - low)
    if low - rounding <= least and most <= high + rounding:
        return
    cure = "scale the images and leave normalisation to the model (or to mean and std), or set pixel_range"
    if pixel_range == (0.0, 1.0) and least >= 0 and 8 < most <= 255:  # normalised images are below 0, too
        cure = "divide them by 255"
    raise InputError(f"{where}: pixels reach from {least:.4g} to {most:.4g}, outside pixel_range={pixel_range}; {cure}")


def _is_channels_last(shape: Sequence[int]) -> bool:
    """Whether ``(N, H, W, C)`` can hardly be ``(N, C, H, W)``; time series, say, are ``(N, C, T, 1)``."""
    _, height, width, channels = shape
    image = min(height, width) > 4
    return image and (channels == 3 or (channels == 1 and height == width))


# -- labels --------------------------------------------------------------------------------------


def as_labels(y: Any, images: int, where: str, *, check: bool = True) -> Labels:
    """The classes of ``images`` images.

    Args:
        y: integers of any type, ``(N,)`` or ``(N, 1)``, or one-hot rows: a tensor, an array or a list.
        images: how many there are.
        where: what gives them, for messages.
        check: whether to look at every row of one-hot labels.

    Raises:
        InputError: they are of another form.
    """
    y = _one_labelling(y, images, where)
    width, floats = None, ""
    if y.dim() == 2 and y.shape[1] == 1:
        y = y[:, 0]
    elif y.dim() == 2:
        if check and not (((y == 0) | (y == 1)).all() and (y != 0).sum(1).eq(1).all()):
            raise InputError(f"{where}: labels are {described(y)} and are not one-hot; give labels.argmax(1)")
        width, y = y.shape[1], y.to(torch.uint8).argmax(1)
    if y.is_floating_point() and ((y == 0) | (y == 1)).all():  # as a network of one logit is trained with
        floats, y = described(y), y.to(torch.int64)
    if y.dim() != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise InputError(f"{where}: labels are {described(y)}; give class indices (N,) as int64")
    if len(y) != images:
        raise _unequal(where, images, len(y))
    return Labels(y.to(torch.int64), width, floats)


def _one_labelling(y: Any, images: int, where: str) -> Tensor:
    """The tensor of labels; several, ``(y1, y2)``, are refused."""
    several = isinstance(y, (tuple, list)) and 0 < len(y) != images and all(dims(each) == 1 for each in y)
    if several and all(len(each) == images for each in y):
        raise InputError(f"{where}: labels are {len(y)} sets of {images} each, for {images} images; give one set")
    return tensor_of(y, f"{where}: labels")


def _unequal(where: str, images: int, labels: int) -> InputError:
    return InputError(f"{where}: {images} images and {labels} labels; give as many of each")


def check_classes(labels: Labels, classes: int | None, where: str) -> None:
    """InputError unless labels are classes of a model with ``classes`` logits; None: not known yet."""
    if classes is None:
        return
    if labels.floats and classes != 2:
        raise InputError(f"{where}: labels are {labels.floats}; give class indices (N,) as int64")
    if labels.width not in (None, classes):
        raise InputError(
            f"{where}: labels are one-hot over {labels.width} classes, and the model has {classes}; give as many"
        )
    least, most = (int(value) for value in labels.classes.aminmax())
    if least < 0 or most >= classes:
        raise InputError(
            f"{where}: labels reach from {least} to {most}, and the model has {classes} classes; "
            f"give indices from 0 to {classes - 1}"
        )


# -- tensors -------------------------------------------------------------------------------------


def tensor_of(value: Any, what: str) -> Tensor:
    """A tensor of what holds numbers or images."""
    if isinstance(value, Tensor):
        if value.is_meta or not is_dense(value):
            raise InputError(f"{what} are a tensor without numbers or a sparse one; give a dense tensor")
        return value
    if _is_picture(value):
        return _of_picture(value, what)
    try:
        if isinstance(value, (tuple, list)) and value and not isinstance(value[0], (int, float, np.generic)):
            parts = [tensor_of(part, what) for part in value]
            if len(shapes := {tuple(part.shape) for part in parts}) > 1:
                raise InputError(f"{what} have shapes {sorted(shapes)}; resize them to one")
            return torch.stack(parts)
        if isinstance(value, (int, float, tuple, list, range)) or hasattr(value, "__array__"):
            array = np.asarray(value)
            return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    except (TypeError, ValueError, RuntimeError) as error:  # texts, objects, ragged lists
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} are {described(value)} of other things than numbers; give numbers") from error
    raise InputError(f"{what} are {described(value)}; give tensors or arrays of numbers")


def _is_picture(value: Any) -> bool:
    """Whether this is a PIL image."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def _of_picture(image: Any, what: str) -> Tensor:
    """A PIL image as uint8 ``(1, H, W)`` if it is grey, else ``(3, H, W)``."""
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{what} have pixels of more than 8 bits (mode {image.mode}); convert them to 8 bits")
    pixels = np.array(image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB"))
    return torch.from_numpy(pixels).view(image.height, image.width, -1).permute(2, 0, 1).contiguous()
