"""The network of a config, and its weights."""

from __future__ import annotations

from torch import Tensor, nn

from ..config import ConfigError, PwoAConfig
from ..method.layout import lay_out
from ..models import load_architecture, load_checkpoint, make_model
from ..models.robustbench import PREFIX, load_robustbench

__all__ = ["laid_out", "load_weights", "make_network", "network_name"]


def laid_out(model: nn.Module, images: Tensor, device: str | None) -> nn.Module:
    """The model itself; on the CPU in channels-last layout if it works so, which makes attacks 1.5 times as fast.

    This ignores `channels_last_is_safe`, because judging computes no gradient of a weight.
    """
    if device in (None, "cpu"):
        lay_out(model, images[:2])
    return model


def network_name(config: PwoAConfig, arch: str | None = None) -> str:
    """The architecture's name: ``arch``, the config's, or ``robustbench:NAME``, which names weights, too."""
    section = config.model
    if section is None:
        raise ConfigError("model is missing; give model: {arch: ..., checkpoint: ...}")
    return arch or section.arch or section.checkpoint


def make_network(config: PwoAConfig, *, arch: str | None, classes: int, channels: int) -> nn.Module:
    """The network in eval mode, without the checkpoint's weights (a network of RobustBench has its own).

    Args:
        config: with a ``model`` section.
        arch: in place of ``model.arch``; may be ``package.module:function``.
        classes: number of classes of the data; ``model.num_classes`` takes precedence.
        channels: of the images.

    Raises:
        ConfigError: there is no ``model`` section, or it contradicts ``arch``.
        InputError: there is no such architecture.
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
        raise ConfigError("model.mean cannot be used with your own --arch; normalise inside your network")
    return load_architecture(name, num_classes=classes).eval()


def load_weights(model: nn.Module, config: PwoAConfig) -> tuple[str, ...]:
    """Load the config's checkpoint; a network of RobustBench already has its weights.

    Returns:
        What was changed or left out; see `load_checkpoint`.
    """
    assert config.model is not None
    return () if config.model.checkpoint.startswith(PREFIX) else load_checkpoint(model, config.model.checkpoint)
