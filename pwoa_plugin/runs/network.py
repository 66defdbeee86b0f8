"""The networks that runs and comparisons name, and their weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..config import ConfigError, PwoAConfig
from ..method.layout import lay_out
from ..models import load_architecture, load_checkpoint, make_model
from ..models.robustbench import PREFIX, load_robustbench


def laid_out(model: nn.Module, images: Tensor, device: str | None) -> nn.Module:
    """The model itself; on the CPU in channels-last layout if it works so, which makes attacks 1.5 times as fast.

    This ignores `channels_last_is_safe`, because judging computes no gradient of a weight.
    """
    if device in (None, "cpu"):
        lay_out(model, images[:2])
    return model


def network_name(config: PwoAConfig, arch: str | None = None) -> str:
    """The architecture's name: ``arch``, the config's, or ``robustbench:NAME``, which names weights, too."""
    if config.model is None:
        raise ConfigError("model is missing; give model: {arch: ..., checkpoint: ...}")
    name = arch or config.model.arch
    if name is None and not config.model.checkpoint.startswith(PREFIX):
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
    if name.startswith(PREFIX):
        return load_robustbench(name, dataset=data, threat=norm)
    if ":" not in name:
        return make_model(name, num_classes=classes, in_channels=channels, mean=mean, std=std).eval()
    if mean is not None:
        raise ConfigError("model.mean cannot be used with your own --arch; normalise inside your network")
    return load_architecture(name, num_classes=classes, in_channels=channels).eval()


def load_weights(model: nn.Module, checkpoint: str, key: str | None = None) -> tuple[str, ...]:
    """Load a checkpoint (RobustBench's networks have their weights already); what was changed or left out."""
    return () if checkpoint.startswith(PREFIX) else load_checkpoint(model, checkpoint, key)
