"""Published robust networks, from RobustBench's model zoo (https://robustbench.github.io)."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import logging
import os
import sys
import types
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .._text import named
from ..errors import FileError, InputError, MissingPackageError
from .checkpoint import CheckpointError, read_checkpoint

__all__ = ["PREFIX", "load_robustbench", "robustbench_spec"]

logger = logging.getLogger(__name__)

PREFIX = "robustbench:"
_INSTALL = 'pip install "pwoa-plugin[robustbench]"'
_THREATS = ("Linf", "L2", "corruptions")
_DATASETS = ("cifar10", "cifar100", "imagenet")


class _Spec(NamedTuple):
    dataset: str
    threat: str
    name: str


def robustbench_spec(source: str, *, dataset: str = "cifar10", threat: str = "Linf") -> _Spec:
    """What ``robustbench:NAME`` or ``robustbench:DATASET/THREAT/NAME`` means.

    Args:
        source: the text, with its prefix.
        dataset: where the text names none: ``cifar10``, ``cifar100`` or ``imagenet``, which ``folder`` stands for.
        threat: where the text names none: ``Linf``, ``L2`` or ``corruptions``.

    Raises:
        ValueError: it is of another form, or names no data set or threat model of RobustBench's.
    """
    parts = source.removeprefix(PREFIX).split("/")
    if len(parts) == 3:
        dataset, threat, name = parts
    elif len(parts) == 1:
        (name,) = parts
    else:
        name = ""
    dataset = "imagenet" if dataset == "folder" else dataset
    if not source.startswith(PREFIX) or not name:
        raise InputError(f"{source!r}: give robustbench:NAME or robustbench:DATASET/THREAT/NAME")
    for what, value, known in (("data set", dataset, _DATASETS), ("threat model", threat, _THREATS)):
        if value not in known:
            raise InputError(
                f"{source!r}: {value!r} is no {what} of RobustBench's; give robustbench:DATASET/THREAT/NAME "
                f"with one of {', '.join(known)}"
            )
    return _Spec(dataset, threat, name)


def load_robustbench(
    source: str, *, dataset: str = "cifar10", threat: str = "Linf", cache: str | os.PathLike[str] | None = None
) -> nn.Module:
    """A published robust network, built and loaded by RobustBench's own zoo, in eval mode, on the CPU.

    Its weights are downloaded once, to ``cache``. They are read as tensors only before the zoo loads them, so that no
    code in the file is run.

    Args:
        source: ``robustbench:NAME`` or ``robustbench:DATASET/THREAT/NAME``.
        dataset, threat: where ``source`` names none; see `robustbench_spec`.
        cache: folder of the weights; None: ``robustbench`` in torch.hub's folder. The file is
            ``DATASET/THREAT/NAME.pt`` in it.

    Returns:
        The network; images ``(N, 3, H, W)`` in [0, 1] to logits. Where it wants them normalised it does so itself.

    Raises:
        ModuleNotFoundError: RobustBench is not installed.
        ValueError: it has no such network; the nearest names are offered.
        CheckpointError: the weights cannot be downloaded or are no weights.
    """
    spec = robustbench_spec(source, dataset=dataset, threat=threat)
    with _importable():
        zoo = _imported()
    known = zoo.model_dicts[zoo.BenchmarkDataset(spec.dataset)][zoo.ThreatModel(spec.threat)]
    if spec.name not in known:
        raise InputError(
            f"{source!r}: RobustBench has no such network for {spec.dataset}, {spec.threat}; {_near(spec, known)}"
        )
    folder = Path(torch.hub.get_dir()) / "robustbench" if cache is None else Path(cache)
    folder = folder.expanduser()
    for file, gdrive_id in _files(spec, known[spec.name].get("gdrive_id"), folder):
        if not file.is_file():
            _download(source, file, gdrive_id, zoo.download)
        read_checkpoint(file)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints
            model: nn.Module = zoo.load_model(
                spec.name, model_dir=folder, dataset=spec.dataset, threat_model=spec.threat
            )
    except OSError as error:
        raise CheckpointError(
            f"{source!r}: its weights cannot be loaded ({named(error, 200)}); run again with a network"
        ) from error
    except (RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source!r}: the weights in {folder} do not fit RobustBench's network ({named(error, 200)}); "
            "delete them and run again"
        ) from error
    return model.cpu().eval()


def _near(spec: _Spec, known: dict[str, Any]) -> str:
    lower = {name.lower(): name for name in known}
    close = [lower[name] for name in difflib.get_close_matches(spec.name.lower(), lower, n=3, cutoff=0.5)]
    close += [name for name in known if spec.name.lower() in name.lower() and name not in close][: 3 - len(close)]
    return f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(sorted(known)[:5])} and more"


def _files(spec: _Spec, gdrive_id: Any, folder: Path) -> list[tuple[Path, str]]:
    """Where RobustBench looks for weights, and what they are called where it downloads from."""
    file = folder / spec.dataset / spec.threat / f"{spec.name}.pt"
    if isinstance(gdrive_id, list):
        return [(file.with_name(f"{file.name}_m{i}.pt"), one) for i, one in enumerate(gdrive_id)]
    return [] if gdrive_id is None else [(file, gdrive_id)]  # timm's and torchvision's own are theirs to get


def _download(source: str, file: Path, gdrive_id: str, download: Any) -> None:
    logger.info("downloading %s to %s", source, file)
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.part")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            download(gdrive_id, scratch)
        if not scratch.is_file():
            raise FileError("nothing came")
        os.replace(scratch, file)
    except Exception as error:  # of requests, urllib3, gdown...
        raise CheckpointError(
            f"{source!r}: its weights cannot be downloaded ({named(error, 200)}); run again with a network, "
            f"or put the file at {file}"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)


class _Zoo(NamedTuple):
    load_model: Any
    download: Any
    model_dicts: Any
    BenchmarkDataset: Any
    ThreatModel: Any


def _imported() -> _Zoo:
    if importlib.util.find_spec("robustbench") is None:
        raise MissingPackageError(f"robustbench:... needs RobustBench; {_INSTALL}", name="robustbench")
    try:
        utils = importlib.import_module("robustbench.utils")
        zoo = importlib.import_module("robustbench.model_zoo")
        enums = importlib.import_module("robustbench.model_zoo.enums")
    except ImportError as error:
        raise MissingPackageError(
            f"RobustBench is installed and does not import ({named(error, 200)}); {_INSTALL}", name=error.name
        ) from error
    return _Zoo(utils.load_model, utils.download_gdrive_new, zoo.model_dicts, enums.BenchmarkDataset, enums.ThreatModel)


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """What RobustBench 1.1.1 imports and its dependencies do not bring, while it is imported.

    It asks for ``autoattack``, which its dependency calls ``pyautoattack``, and for ``pkg_resources``, which setuptools
    has dropped. The stand-ins are gone afterwards: RobustBench alone has them.
    """
    stands_in: dict[str, types.ModuleType] = {}
    if importlib.util.find_spec("autoattack") is None and importlib.util.find_spec("pyautoattack") is not None:
        stands_in["autoattack"] = importlib.import_module("pyautoattack")
        stands_in["autoattack.state"] = importlib.import_module("pyautoattack.state")
    if importlib.util.find_spec("pkg_resources") is None:
        stands_in["pkg_resources"] = _pkg_resources()
    before = {name: sys.modules.get(name) for name in stands_in}
    sys.modules.update(stands_in)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def _pkg_resources() -> types.ModuleType:
    """The one function of it that RobustBench calls."""

    def resource_filename(package: str, name: str) -> str:
        if getattr(sys.modules[package], "__path__", None) is None:
            package = package.rpartition(".")[0]
        return str(resources.files(package).joinpath(name))

    module = types.ModuleType("pkg_resources")
    module.resource_filename = resource_filename  # type: ignore[attr-defined]
    return module
