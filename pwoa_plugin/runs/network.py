"""The networks that runs and comparisons name, and their weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from ..config import ConfigError, PwoAConfig
from ..data import data_set
from ..method.layout import lay_out
from ..models import (
    Own,
    Wanted,
    load_architecture,
    load_checkpoint,
    make_model,
    names_code,
    normalised,
    source_of,
)

_logger = logging.getLogger(__name__)


def laid_out(model: nn.Module, images: Tensor, device: str | None) -> nn.Module:
    """The model itself; on the CPU in channels-last layout if it works so, which makes attacks 1.5 times as fast.

    This ignores `channels_last_is_safe`, because judging computes no gradient of a weight.
    """
    if device in (None, "cpu"):
        lay_out(model, images[:2])
    return model


def network_name(config: PwoAConfig, arch: str | None = None) -> str:
    """The architecture's name: ``arch``, the config's, or the checkpoint's where that names a network, too."""
    if config.model is None:
        raise ConfigError("model is missing; give model: {arch: ..., checkpoint: ...}")
    name = arch or config.model.arch
    if name is None and source_of(config.model.checkpoint) is None:
        raise ConfigError("model.arch is missing; name the network that the checkpoint is of, as resnet18-cifar")
    return name or config.model.checkpoint


def network_of(config: PwoAConfig, arch: str | None, classes: int, channels: int) -> nn.Module:
    """The network of a config, or ``arch`` in its place, without the checkpoint's weights."""
    name = network_name(config, arch)
    section = config.model
    assert section is not None
    return make_network(
        name,
        classes=section.num_classes or classes,
        channels=channels,
        data=config.data.name if config.data else "cifar10",
        mean=section.mean,
        std=section.std,
    )


def make_network(
    name: str,
    *,
    classes: int,
    channels: int,
    data: str,
    norm: str = "Linf",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """A network in eval mode: RobustBench's with its weights, ``package.module:function``, or a named architecture."""
    if (source := source_of(name)) is not None:
        model = source.build(name, Wanted(classes=classes, channels=channels, data=data, norm=norm))
        return normalised(model, channels, mean, std).eval()
    if not names_code(name):
        return make_model(name, num_classes=classes, in_channels=channels, mean=mean, std=std).eval()
    if mean is not None:
        raise ConfigError("model.mean cannot be used with your own --arch; normalise inside your network")
    return load_architecture(name, num_classes=classes, in_channels=channels).eval()


def load_weights(model: nn.Module, checkpoint: str, key: str | None = None) -> tuple[str, ...]:
    """Load a checkpoint, unless its source has built the network with its weights; what was changed or left out."""
    source = source_of(checkpoint)
    return () if source is not None and source.weights(checkpoint) is None else load_checkpoint(model, checkpoint, key)


def own_of(arch: str | None, checkpoint: str) -> Own:
    """What a network was trained with: by the source of its weights, else by that of its architecture."""
    of_arch, of_weights = (source_of(name) for name in (arch, checkpoint))
    own = of_weights.describe(checkpoint) if of_weights is not None else Own()
    if of_arch is None or arch is None:
        return own
    by_arch = of_arch.describe(arch)
    if own.mean is None:
        own = replace(own, mean=by_arch.mean, std=by_arch.std)
    return replace(own, size=own.size or by_arch.size, fixed_size=by_arch.fixed_size)


def check_own(name: str, own: Own, *, classes: int | None, shape: tuple[int, ...]) -> None:
    """Refuse images that a network cannot take, and classes that are not its own.

    Args:
        name: of the network.
        own: what it was trained with.
        classes: of the data; None: whatever the network has.
        shape: ``(C, H, W)`` of the images.
    """
    size = shape[1:]
    if own.fixed_size and own.size and size != (own.size, own.size):
        raise ConfigError(
            f"{name} takes images of {own.size} x {own.size}, and these have {size[0]} x {size[1]}; give "
            f"data.image_size={own.size} (--image-size) with a folder, or name a network for their size"
        )
    if classes is not None and own.classes not in (None, classes) and (own.classes, classes) != (1, 2):
        raise ConfigError(
            f"{name} has {own.classes} classes, and the images have {classes}; give images of its classes, or "
            f"model.num_classes={own.classes} if the first {classes} are theirs"
        )


def is_named(checkpoint: str) -> bool:
    """Whether a checkpoint is a name, and no path."""
    return checkpoint.startswith("shipped:") or source_of(checkpoint) is not None


def architecture_of(checkpoint: str, arch: str | None) -> str | None:
    """The name of a checkpoint's architecture: ``arch``, or its own where that decides it; None if nothing does."""
    source = source_of(checkpoint)
    decides = source is not None and (arch is None or "arch" in source.fixed)
    return checkpoint if decides else arch


def load_network(
    checkpoint: str,
    arch: str | None,
    key: str | None,
    wanted: Wanted,
    shape: tuple[int, ...],
    *,
    normalise: bool = True,
) -> nn.Module:
    """The network of a checkpoint with its weights, in eval mode.

    Args:
        checkpoint: a path or a name.
        arch: its architecture, where the name does not say it.
        key: of the state dict in a file with several.
        wanted: what it is for.
        shape: ``(C, H, W)`` of an image.
        normalise: whether the network gets the normalisation that it was trained with, where its source says it.
    """
    name = architecture_of(checkpoint, arch)
    if name is None:
        raise ConfigError(f"arch is missing; give --arch, the network that {checkpoint} is of, as resnet18-cifar")
    own = own_of(name, checkpoint)
    check_own(name, own, classes=wanted.classes, shape=shape)
    mean, std = own.mean, own.std
    if mean is not None and not (normalise and len(mean) == shape[0]):
        _logger.info("%s was trained with mean %s and std %s, which are not used", checkpoint, mean, std)
        mean = std = None
    elif mean is not None:
        _logger.info("%s: took over its mean %s and std %s; --mean and --std replace them", checkpoint, mean, std)
    model = make_network(
        name,
        classes=wanted.classes,
        channels=wanted.channels,
        data=wanted.data,
        norm=wanted.norm,
        mean=mean,
        std=std,
    )
    load_weights(model, checkpoint, key)
    return model


def with_own(config: PwoAConfig, arch: str | None) -> tuple[PwoAConfig, tuple[str, ...]]:
    """The config with what its network was trained with, where it has None: mean, std, size of a folder's images.

    Returns:
        The config, and what was taken over or differs, a sentence each; each is also logged.
    """
    section, data = config.model, config.data
    if section is None or data is None:
        return config, ()
    name = network_name(config, arch)
    own = own_of(name, section.checkpoint)
    if own == Own():
        return config, ()
    notes = []
    if data.name == "folder" and data.image_size is None and own.size:
        data = data.model_copy(update={"image_size": own.size})
        notes.append(f"took over data.image_size={own.size}, the size that {name} was trained with")
    classes, shape = data_set(data).describe(data)
    check_own(name, own, classes=classes if section.num_classes is None else None, shape=shape)
    if own.size and shape[1:] != (own.size, own.size):
        notes.append(f"{name} was trained on images of {own.size} x {own.size}; these have {shape[1]} x {shape[2]}")
    if section.mean is None and own.mean is not None:
        if len(own.mean) == shape[0]:
            section = section.model_copy(update={"mean": own.mean, "std": own.std})
            notes.append(
                f"took over mean {own.mean} and std {own.std} of {name}; model.mean and model.std replace them"
            )
        else:
            notes.append(f"left out mean {own.mean} and std {own.std} of {name}: the images have {shape[0]} channel(s)")
    elif own.mean is not None and (section.mean, section.std) != (own.mean, own.std):
        notes.append(f"model.mean and model.std are yours; {name} was trained with mean {own.mean} and std {own.std}")
    for note in notes:
        _logger.info("%s", note)
    return type(config)(**dict(config) | {"model": section, "data": data}), tuple(notes)
