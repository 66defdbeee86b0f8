"""`PwoAConfig`: all options of a pruning run, checked before training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from .._files import write_text
from .._section import ConfigError
from .._yaml import dump_yaml
from ..data.config import NO_SIZE, DataConfig
from ..errors import InputError
from ..method.settings import TrainingConfig
from ..models.config import ModelConfig
from ..models.sources import source_of
from .files import read_fields
from .paper import published_fields


class PwoAConfig(TrainingConfig):
    __doc__ = f"""{TrainingConfig.__doc__}
        data: in a file, in place of ``train_loader``; see `DataConfig`.
        model: in a file, in place of the module; see `ModelConfig`. `PwoAPruner` gets a module and ignores it.
    """

    data: DataConfig | None = None
    model: ModelConfig | None = None

    @model_validator(mode="after")
    def _pixels_of_data(self) -> PwoAConfig:
        if self.data is not None and self.pixel_range != (0.0, 1.0):
            raise InputError(
                f"pixel_range={self.pixel_range} does not go with data, whose pixels are in [0, 1]; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _size_of_images(self) -> PwoAConfig:
        named = self.model is not None and (source_of(self.model.arch) or source_of(self.model.checkpoint))
        if self.data is not None and self.data.name == "folder" and self.data.image_size is None and not named:
            raise InputError(NO_SIZE)
        return self

    @classmethod
    def from_yaml(
        cls, path: str | os.PathLike[str], *, changes: Mapping[str, Any] | None = None, **fields: Any
    ) -> PwoAConfig:
        """The config in a YAML (or JSON) file. Reading a file never runs code.

        Args:
            path: of the file; its keys are the fields of this class and of its sections.
            changes: other values by dotted name, such as ``{"admm.epochs": 0}``.
            **fields: other fields, such as ``train_loader``. A section replaces the file's section whole.

        Raises:
            ConfigError: the file is not a YAML mapping, or a value is invalid; the line names file and field.
            FileError: the file cannot be read.
        """
        values = read_fields(path, changes or {})
        try:
            return cls(**(values | fields))
        except ConfigError as error:
            raise ConfigError(f"{os.fspath(path)}: {error}") from None

    def to_yaml(self, path: str | os.PathLike[str] | None = None) -> str:
        """The whole config as YAML, defaults included, without ``train_loader``; `from_yaml` reads it back.

        Args:
            path: file to write, whole or not at all; missing folders are made. None: text only.

        Returns:
            The text.
        """
        text = dump_yaml(self.model_dump(mode="json"))
        if path is not None:
            write_text(path, text)
        return text

    @classmethod
    def paper(cls, dataset: Literal["mnist", "cifar10", "cifar100"], *, epochs: int = 150, **fields: Any) -> PwoAConfig:
        """What PwoA's authors published for a data set: 50 epochs of ADMM, then 100 of fine-tuning.

        Temperature 30, uniform allocation, no perturbation, HSIC in the fine-tuning only, dual updates every 3
        epochs, rho .01 growing by 1.35 to at most 1, the ADMM learning rate times 1, .1, .01 by epoch within each
        cycle of 3, a new optimizer for fine-tuning. One thing differs: the authors' code resets Z at every epoch, which
        is a bug and not the method.

        Args:
            dataset: ``mnist``, ``cifar10`` or ``cifar100``.
            epochs: of the whole run. Fewer than the published 150 cut both phases and the milestones in proportion,
                and nothing else: dual updates still come every 3 epochs.
            **fields: more fields, or other values (``sparsity`` and ``train_loader`` at least). A section (``admm``,
                ``hsic``...) given here replaces the published one whole; its terms stay in every step.

        Raises:
            ConfigError: nothing was published for this data set, or a field is out of its range.
        """
        for name, share in (("hsic", "share"), ("distillation", "feature_share")):
            if isinstance(section := fields.get(name), Mapping):
                fields[name] = {share: 1.0, **section}
        return cls(**(published_fields(dataset, epochs) | fields))
