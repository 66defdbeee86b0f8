"""Networks of timm (https://github.com/huggingface/pytorch-image-models), with weights from its repositories."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from .._text import did_you_mean, named
from ..errors import InputError, is_out_of_memory, memory_for, missing
from .hub import hub_file
from .sources import Own, Source, Wanted

# Where weights come from: timm would read them itself, pickled ones too.
_PLACES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")

# Options of timm's `create_model` that are not the architecture's.
_NOT_OF_AN_ARCHITECTURE = {
    *("model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
    *("scriptable", "exportable", "no_jit", "num_classes", "in_chans", "features_only"),
}


class Timm(Source):
    """``timm:NAME`` or ``timm:NAME.TAG``: as an architecture without weights, as a checkpoint with timm's own."""

    fixed: ClassVar[tuple[str, ...]] = ("arch", "key")

    def describe(self, name: str) -> Own:
        return own_of(self._config(name))

    def build(self, name: str, wanted: Wanted) -> nn.Module:
        return build(name.partition(":")[2].partition(".")[0], self._config(name), {}, wanted, name)

    def weights(self, name: str) -> Path:
        config = self._config(name)
        if not _has_safetensors(config):
            plain = name.partition(":")[2].partition(".")[0]
            tags = import_timm().list_models(f"{plain}.*", pretrained=True)
            others = [f"timm:{tag}" for tag in tags if _has_safetensors(self._config(f"timm:{tag}"))]
            raise InputError(
                f"{name!r}: timm has no safetensors of it; name {', '.join(others[:5]) or 'another network'}, or give "
                f"model.arch=timm:{plain} and a model.checkpoint of your own"
            )
        return hub_file(f"hf:{config['hf_hub_id']}", "model.safetensors", said=name)

    def _config(self, name: str) -> dict[str, Any]:
        """timm's ``pretrained_cfg`` of a name."""
        timm, plain = import_timm(), name.partition(":")[2]
        architecture, dot, _ = plain.partition(".")
        if not timm.is_model(architecture):
            near = did_you_mean(architecture, timm.list_models(), "see timm.list_models()", most=3)
            raise InputError(f"{name!r}: timm has no network {architecture!r}{near}")
        tags = timm.list_models(f"{architecture}.*", pretrained=True)
        if dot and plain not in tags:
            near = did_you_mean(plain, tags, f"it has {', '.join(tags[:5]) or 'none'}", most=3)
            raise InputError(f"{name!r}: timm has no such weights of {architecture}{near}")
        found = timm.get_pretrained_cfg(plain)
        return {} if found is None else dict(found.to_dict())


def _has_safetensors(config: Mapping[str, Any]) -> bool:
    """Whether the hub has ``model.safetensors``; files of another name may be pickled."""
    return bool(config.get("hf_hub_id")) and not config.get("hf_hub_filename")


def import_timm() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm 1.0.9 uses what torch 2.14 deprecates
            return importlib.import_module("timm")
    except ImportError as error:
        raise missing("timm:...", "timm", "hub") from error


def own_of(config: Mapping[str, Any]) -> Own:
    """What a ``pretrained_cfg`` says.

    Raises:
        LookupError, TypeError, ValueError: it says it in another form than timm's.
    """
    classes, mean, std, size = (config.get(name) for name in ("num_classes", "mean", "std", "input_size"))
    given = bool(mean) and bool(std) and len(mean) == len(std)  # type: ignore[arg-type]
    return Own(
        classes=None if classes is None else int(classes),
        mean=tuple(map(float, mean)) if mean and given else None,
        std=tuple(map(float, std)) if std and given else None,
        size=int(size[1]) if size and size[1] == size[2] else None,
        fixed_size=bool(config.get("fixed_input_size")),
    )


def build(
    architecture: str, config: Mapping[str, Any], options: Mapping[str, Any], wanted: Wanted, said: str
) -> nn.Module:
    """A network of timm without its weights: nothing is downloaded.

    Args:
        architecture: its name in timm.
        config: a ``pretrained_cfg``.
        options: further ones of the architecture, ``model_args`` in a ``config.json``.
        wanted: logits and channels.
        said: what the user wrote, for messages.
    """
    timm = import_timm()
    if not timm.is_model(architecture):
        near = did_you_mean(architecture, timm.list_models(), "install a newer timm", most=3)
        raise InputError(f"{said!r}: timm {timm.__version__} has no network {architecture!r}{near}")
    if wrong := sorted(_NOT_OF_AN_ARCHITECTURE & options.keys()):
        raise InputError(f"{said!r}: its config.json sets model_args.{wrong[0]}, which is no option of a network")
    kept = {name: value for name, value in config.items() if name not in _PLACES}
    with memory_for(f"model.num_classes={wanted.classes}"):
        try:
            model: nn.Module = timm.create_model(
                architecture,
                pretrained=False,
                pretrained_cfg=kept,
                num_classes=wanted.classes,
                in_chans=wanted.channels,
                **options,
            )
        except Exception as error:  # as many types as there are ways to give wrong options
            if is_out_of_memory(error):
                raise
            raise InputError(
                f"{said!r}: timm {timm.__version__} does not build {architecture} ({named(error, 200)}); "
                "install a newer timm, or name another network"
            ) from error
    return model
