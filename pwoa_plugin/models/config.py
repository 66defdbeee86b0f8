"""Which network a file's run prunes."""

from __future__ import annotations

from pydantic import Field, model_validator

from .._pixels import PerChannel
from .._section import Section
from ..errors import InputError
from .sources import names_code, source_of


class ModelConfig(Section):
    """The network of a file's run, where Python has a module.

    Attributes:
        arch: ``lenet``, ``lenet3``, ``resnet18-cifar``, ``vgg16-cifar``, ``wrn-34-10``, or a torchvision name as
            ``resnet50``, or ``timm:NAME``; None where the checkpoint names a network with its weights, or where
            ``--arch package.module:function`` names a class of your own: a file never runs code.
        checkpoint: of the robust network: ``.safetensors``, ``.pt`` or ``.pth``; or ``shipped:robust_lenet_mnist``; or
            ``robustbench:NAME`` (``pip install "pwoa-plugin[robustbench]"``), ``timm:NAME`` or ``hf:owner/name``
            (``pip install "pwoa-plugin[hub]"``), network and weights; ``hf:`` needs ``arch`` unless its network is
            one of timm.
        key: of the state dict in the checkpoint, where it has several, as ``state_dict_ema``; dotted where nested.
            None: the first usual one; the log names the others.
        num_classes: logits; None: as many as the data has classes. 1: one logit for two classes.
        mean, std: by channel, where the network was trained on normalised images: ``(x - mean) / std`` then happens
            inside the network, and ``eps`` stays in pixel units. None: what a ``timm:`` or ``hf:`` network was
            trained with; for others, none.
    """

    arch: str | None = None
    checkpoint: str
    key: str | None = None
    num_classes: int | None = Field(default=None, ge=1, le=1_000_000)
    mean: PerChannel | None = None
    std: PerChannel | None = None

    @model_validator(mode="after")
    def _no_code(self) -> ModelConfig:
        if (source := source_of(self.checkpoint)) is not None:
            for name in source.fixed:
                if (value := getattr(self, name)) is not None:
                    raise InputError(
                        f"{name}={value!r} does not go with {self.checkpoint}, which has its own; leave it out"
                    )
        if names_code(self.arch):
            raise InputError(f"arch={self.arch!r} names code, and a file never runs any; give it as --arch")
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise InputError("mean and std go together, with a number for each channel; give both or neither")
        if min(self.std or (1,)) <= 0:
            raise InputError(f"std={self.std} is not positive; give the standard deviation of each channel")
        return self
