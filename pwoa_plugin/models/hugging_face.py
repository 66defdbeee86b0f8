"""Networks and weights from repositories of the Hugging Face Hub: safetensors only."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from .._files import read_json
from .._text import named
from ..errors import InputError
from .hub import NoSuchFileError, hub_file, spec_of
from .sources import Own, Source, Wanted
from .timm import build, own_of
from .training_aids import CheckpointError

_logger = logging.getLogger(__name__)


class Hub(Source):
    """``hf:owner/name``, ``hf:owner/name@revision``, ``hf:owner/name/file.safetensors``.

    The weights are its ``model.safetensors``. Without ``model.arch`` the network is the one of timm that its
    ``config.json`` describes.
    """

    def describe(self, name: str) -> Own:
        try:
            config = self._config(name, needed=False)
        except CheckpointError as error:
            self.weights(name)  # raises its own error where these are missing, too
            _logger.warning("%s; mean, std and size are not known", error)
            return Own()
        try:
            return own_of(config["pretrained_cfg"]) if config else Own()
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"{name!r}: its config.json says no usable classes, mean, std or size ({named(error)}); give another "
                "repository, or download the weights and give the file as model.checkpoint"
            ) from error

    def build(self, name: str, wanted: Wanted) -> nn.Module:
        config = self._config(name, needed=True)
        assert config is not None
        return build(str(config["architecture"]), config["pretrained_cfg"], config["model_args"], wanted, name)

    def weights(self, name: str) -> Path:
        file = spec_of(name).file
        try:
            return hub_file(name, file, said=name)
        except CheckpointError as error:
            try:
                hub_file(name, f"{file}.index.json", said=name)
            except CheckpointError:
                raise error from None
        raise CheckpointError(
            f"{name!r}: its weights are in several files, and one is read; download them, save the state dict as one "
            "safetensors file, and give that as model.checkpoint"
        )

    def _config(self, name: str, needed: bool) -> dict[str, Any] | None:
        """Architecture, ``pretrained_cfg`` and ``model_args`` of a ``config.json``, read as timm reads it."""
        try:
            content = read_json(hub_file(name, "config.json", said=name))
        except NoSuchFileError:
            content = {}
        cure = "give model.arch (--arch), the network that these weights are of"
        if not isinstance(content, dict) or "architecture" not in content:
            if needed:
                raise InputError(f"{name!r}: its config.json names no network of timm; {cure}")
            return None
        own = content.get("pretrained_cfg", content)  # older files have its entries at the top
        options = content.get("model_args") or {}
        if not isinstance(own, dict) or not isinstance(options, dict):
            wrong = "model_args" if isinstance(own, dict) else "pretrained_cfg"
            raise InputError(f"{name!r}: its config.json is not one of timm ({wrong} is no object); {cure}")
        config = {key: value for key, value in own.items() if key not in ("architecture", "num_features", "labels")}
        if "num_classes" in content:
            config["num_classes"] = content["num_classes"]
        return {"architecture": content["architecture"], "pretrained_cfg": config, "model_args": options}
