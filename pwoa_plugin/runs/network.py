"""The network that a config names."""

from __future__ import annotations

from torch import nn

from ..config import ConfigError, PwoAConfig
from ..models import load_architecture, make_model

__all__ = ["make_network"]


def make_network(config: PwoAConfig, *, arch: str | None, classes: int, channels: int) -> nn.Module:
    """The network, in eval mode, its weights still to be loaded.

    Args:
        config: with a ``model`` section.
        arch: in place of ``model.arch``; may be ``package.module:function``.
        classes: of the data; ``model.num_classes`` goes before.
        channels: of the images.

    Raises:
        ConfigError: there is no ``model`` section, or it does not go with ``arch``.
        ValueError: there is no such architecture.
    """
    section = config.model
    if section is None:
        raise ConfigError("model is missing; give model: {arch: ..., checkpoint: ...}")
    name = arch or section.arch
    classes = section.num_classes or classes
    if ":" not in name:
        made = make_model(name, num_classes=classes, in_channels=channels, mean=section.mean, std=section.std)
        return made.eval()
    if section.mean is not None:
        raise ConfigError("model.mean does not go with --arch of your own; normalise inside your network")
    return load_architecture(name, num_classes=classes).eval()
