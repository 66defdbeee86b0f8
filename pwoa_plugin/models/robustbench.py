"""Published robust networks from RobustBench's model zoo (https://robustbench.github.io)."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from .._text import did_you_mean, named
from ..errors import InputError, missing
from .checkpoint import CheckpointError, read_checkpoint
from .sources import Source, Wanted

logger = logging.getLogger(__name__)

PREFIX = "robustbench:"
_DATASETS = ("cifar10", "cifar100", "imagenet")
_THREATS = ("Linf", "L2", "corruptions")


class RobustBench(Source):
    """``robustbench:NAME`` or ``robustbench:DATASET/THREAT/NAME``, network and weights in one."""

    fixed: ClassVar[tuple[str, ...]] = ("arch", "key", "num_classes", "mean")

    def build(self, name: str, wanted: Wanted) -> nn.Module:
        return load_robustbench(name, dataset=wanted.data, threat=wanted.norm)


def robustbench_spec(source: str, *, dataset: str = "cifar10", threat: str = "Linf") -> tuple[str, str, str]:
    """The data set, threat model and name in ``robustbench:NAME`` or ``robustbench:DATASET/THREAT/NAME``.

    ``dataset`` and ``threat`` complete the first form; ``folder`` stands for ``imagenet``.
    """
    match = re.fullmatch(rf"{PREFIX}(?:([^/]+)/([^/]+)/)?([^/]+)", source)
    default = "imagenet" if dataset == "folder" else dataset
    spec = (match[1] or default, match[2] or threat, match[3]) if match else ("", "", "")
    if spec[0] not in _DATASETS or spec[1] not in _THREATS:
        raise InputError(
            f"{source!r} (data set {default}, threat model {threat}): give robustbench:DATASET/THREAT/NAME "
            f"with one of {', '.join(_DATASETS)} and one of {', '.join(_THREATS)}"
        )
    return spec


def load_robustbench(source: str, *, dataset: str = "cifar10", threat: str = "Linf") -> nn.Module:
    """Build and load a published robust network with RobustBench's own code; in eval mode, on the CPU.

    Its weights are downloaded once, to ``DATASET/THREAT/NAME.pt`` in ``robustbench`` in torch.hub's folder. They are
    first read as tensors only, so that no code in the file is run.

    Args:
        source, dataset, threat: see `robustbench_spec`.

    Returns:
        The network, from images ``(N, 3, H, W)`` in [0, 1] to logits; it normalises them itself where it needs to.
    """
    dataset, threat, name = robustbench_spec(source, dataset=dataset, threat=threat)
    utils, zoo = _import_robustbench()
    known = zoo.model_dicts[zoo.enums.BenchmarkDataset(dataset)][zoo.enums.ThreatModel(threat)]
    if name not in known:
        near = did_you_mean(name, known, f"it has {', '.join(sorted(known)[:5])} and more", most=3)
        raise InputError(f"{source!r}: RobustBench has no such network for {dataset}, {threat}{near}")
    folder = Path(torch.hub.get_dir()) / "robustbench"
    for file, gdrive_id in _files(folder / dataset / threat / f"{name}.pt", known[name].get("gdrive_id")):
        if not file.is_file():
            _download(source, file, gdrive_id, utils.download_gdrive_new)
        read_checkpoint(file)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints
            model: nn.Module = utils.load_model(name, model_dir=folder, dataset=dataset, threat_model=threat)
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source!r}: the weights in {folder} do not load into RobustBench's network ({named(error, 200)}); "
            "delete them and run again with network access"
        ) from error
    return model.cpu().eval()


def _files(file: Path, gdrive_id: Any) -> list[tuple[Path, str]]:
    """Where RobustBench looks for weights, each with its Google Drive id."""
    if isinstance(gdrive_id, list):
        return [(file.with_name(f"{file.name}_m{i}.pt"), one) for i, one in enumerate(gdrive_id)]
    return [] if gdrive_id is None else [(file, gdrive_id)]  # None: timm or torchvision downloads its own


def _download(source: str, file: Path, gdrive_id: str, download: Any) -> None:
    logger.info("downloading %s to %s", source, file)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            download(gdrive_id, file)
    except Exception as error:  # of requests, urllib3, gdown...
        raise CheckpointError(
            f"{source!r}: its weights cannot be downloaded ({named(error, 200)}); run again with network access, "
            f"or put the file at {file}"
        ) from error


def _import_robustbench() -> tuple[Any, Any]:
    try:
        with _importable():
            return importlib.import_module("robustbench.utils"), importlib.import_module("robustbench.model_zoo")
    except ImportError as error:
        raise missing(f"robustbench:... ({named(error, 200)})", "robustbench", "robustbench") from error


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """Provide what RobustBench 1.1.1 imports and its dependencies lack, while it is imported.

    It imports ``autoattack``, which its dependency calls ``pyautoattack``, and ``pkg_resources``, which setuptools has
    dropped. The stand-ins are removed afterwards, so that no other package sees them.
    """
    stand_ins: dict[str, types.ModuleType] = {}
    if importlib.util.find_spec("autoattack") is None:
        stand_ins["autoattack"] = importlib.import_module("pyautoattack")
        stand_ins["autoattack.state"] = importlib.import_module("pyautoattack.state")
    if importlib.util.find_spec("pkg_resources") is None:
        stand_ins["pkg_resources"] = types.ModuleType("pkg_resources")
        stand_ins["pkg_resources"].resource_filename = _resource_filename  # type: ignore[attr-defined]
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _resource_filename(package: str, name: str) -> str:
    """``pkg_resources.resource_filename``, the one function of it that RobustBench calls."""
    return str(Path(str(sys.modules[package].__file__)).with_name(name))
