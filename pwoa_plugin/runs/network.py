"""The network that a config names."""

from __future__ import annotations

from torch import Tensor, nn

from ..config import ConfigError, PwoAConfig
from ..method.layout import lay_out
from ..models import load_architecture, load_checkpoint, make_model
from ..models.robustbench import PREFIX, load_robustbench

__all__ = ["laid_out", "load_weights", "make_network", "network_name"]


def laid_out(model: nn.Module, images: Tensor, device: str | None) -> nn.Module:
    """The model itself, channels last where it is judged on the CPU and takes that: attacks are 1.5 times as fast.

    Also where `channels_last_is_safe` says no: a judge asks for no gradient of a weight.
    """
    if device in (None, "cpu"):
        lay_out(model, images[:2])
    return model


def network_name(config: PwoAConfig, arch: str | None = None) -> str:
    """The architecture's name: ``arch``, the config's, or ``robustbench:NAME``, which is weights too."""
    section = config.model
    if section is None:
        raise ConfigError("model is missing; give model: {arch: ..., checkpoint: ...}")
    return arch or section.arch or section.checkpoint


def make_network(config: PwoAConfig, *, arch: str | None, classes: int, channels: int) -> nn.Module:
    """The network, in eval mode, its weights still to be loaded (RobustBench's have theirs).

    Args:
        config: with a ``model`` section.
        arch: in place of ``model.arch``; may be ``package.module:function``.
        classes: of the data; ``model.num_classes`` goes before.
        channels: of the images.

    Raises:
        ConfigError: there is no ``model`` section, or it does not go with ``arch``.
        ValueError: there is no such architecture.
    """
    name = network_name(config, arch)
    section = config.model
    assert section is not None
    if name.startswith(PREFIX):
        return load_robustbench(name, dataset=config.data.name if config.data else "cifar10")
    classes = section.num_classes or classes
    if ":" not in name:
        made = make_model(name, num_classes=classes, in_channels=channels, mean=section.mean, std=section.std)
        return made.eval()
    if section.mean is not None:
        raise ConfigError("model.mean does not go with --arch of your own; normalise inside your network")
    return load_architecture(name, num_classes=classes).eval()


def load_weights(model: nn.Module, config: PwoAConfig) -> tuple[str, ...]:
    """Load the config's checkpoint; nothing to do for one of RobustBench's, whose weights came with it.

    Returns:
        What was undone or left out; see `load_checkpoint`.
    """
    assert config.model is not None
    return () if config.model.checkpoint.startswith(PREFIX) else load_checkpoint(model, config.model.checkpoint)
