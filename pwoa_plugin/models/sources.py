"""Sources of networks and weights: the word before the colon in ``timm:resnet50`` or ``hf:owner/name``."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

#: Sources by name: ``module:class`` in this package, imported when used.
SOURCES: dict[str, str] = {
    "hf": "hugging_face:Hub",
    "robustbench": "robustbench:RobustBench",
    "timm": "timm:Timm",
}


@dataclass(frozen=True)
class Own:
    """What a named network was trained with; None where its source does not say.

    Attributes:
        classes: number of logits.
        mean, std: of its normalisation, by channel, for pixels in [0, 1].
        size: height and width of its images in pixels.
        fixed_size: whether it takes no images of another size.
    """

    classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    fixed_size: bool = False


@dataclass(frozen=True)
class Wanted:
    """What a network is built for: logits, channels of the images, name of the data set, norm of the attacks."""

    classes: int
    channels: int
    data: str = "cifar10"
    norm: str = "Linf"


class Source(ABC):
    """Makes networks, and finds their weights, by names such as ``timm:resnet50``; each method gets the whole name.

    Attributes:
        fixed: fields of the config's ``model`` that a checkpoint of this source decides; giving them is an error.
    """

    fixed: ClassVar[tuple[str, ...]] = ()

    def describe(self, name: str) -> Own:
        """What the network was trained with."""
        return Own()

    @abstractmethod
    def build(self, name: str, wanted: Wanted) -> nn.Module:
        """The network on the CPU, without normalisation of its own unless the architecture has it."""

    def weights(self, name: str) -> Path | None:
        """The file of its weights, downloaded if need be; None: `build` has loaded them."""
        return None


def source_of(name: str | None) -> Source | None:
    """The source that a name begins with; None for a path, a plain name, or code of the user's."""
    prefix, colon, _ = (name or "").partition(":")
    if not colon or prefix not in SOURCES:
        return None
    module, _, kind = SOURCES[prefix].partition(":")
    found: type[Source] = getattr(importlib.import_module(f".{module}", __package__), kind)
    return found()


def names_code(arch: str | None) -> bool:
    """Whether an architecture is code of the user's, ``package.module:function``."""
    prefix, colon, _ = (arch or "").partition(":")
    return bool(colon) and prefix not in SOURCES
