"""What every format offers."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ..errors import require


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a user may choose of a file, beside its format.

    Attributes:
        quantize: ``int8``, or None.
        calibration: natural images ``(N, C, H, W)`` by which ranges are set; needed where ``quantize`` is given.
        values: dtype of stored values, or None for the network's own.
    """

    quantize: str | None = None
    calibration: Tensor | None = None
    values: str | None = None


class Format(ABC):
    """How a network is written to one file, and read again to be judged."""

    suffix: ClassVar[str]
    quantizations: ClassVar[tuple[str, ...]] = ()
    """What ``Choices.quantize`` may be."""
    values: ClassVar[tuple[str, ...]] = ()
    """What ``Choices.values`` may be."""
    library: ClassVar[str] = "pytorch"
    """What reads the file, as Hugging Face's model cards name it."""
    exact: ClassVar[bool] = True
    """Whether the file has the network's own values, where `Choices` leave them."""
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    def require(self, what: str) -> None:
        """Raise a MissingPackageError unless the packages of the format are installed."""
        require(what, self.packages, self.extra)

    @abstractmethod
    def write(self, model: nn.Module, path: str | os.PathLike[str], images: Tensor, choices: Choices) -> None:
        """Write the network; a file of that name is replaced whole or not at all.

        Args:
            model: in eval mode; it is not changed.
            path: of the file.
            images: examples ``(N, C, H, W)``, at least 2, on which the file is compared with the network.
            choices: all that this format has, or None.

        Raises:
            InputError: the network cannot be written so; one line says why.
        """

    @abstractmethod
    def read(self, path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
        """The file as a network, to be judged.

        Args:
            path: of a file that `write` has just written.
            model: the network that was written; it is not changed.
        """

    @abstractmethod
    def loading(self, name: str, new: str, removed: bool) -> str:
        """Python that loads the file ``name`` and asks it about ``images``, for its card; it runs as it stands.

        Args:
            name: of the file, in the working folder.
            new: Python that makes a new network of the same architecture; it needs ``make_network`` of
                `pwoa_plugin.runs.network`.
            removed: whether channels were removed from the network.
        """
