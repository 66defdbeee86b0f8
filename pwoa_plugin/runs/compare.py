"""`pwoa compare`, and `pwoa evaluate` of anything but a run: judge networks into a folder."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from .._digest import digest_of
from .._files import write_text
from .._versions import installed_versions
from ..config import ConfigError, PwoAConfig
from ..data import data_set
from ..errors import FileError, InputError
from ..models import Wanted, names_code
from ..pages import write_plots
from ..robustness import AttackSettings, Comparison, JudgeSettings
from ..robustness.attacks.described import json_ready
from ..robustness.comparing import compare_task
from ..robustness.settings import CompareOptions, Task
from ..robustness.sharing import is_main, on_main, shared
from .evaluate import bind_test_images, pruned_network
from .folder import Folder, RunFolder
from .network import is_named, laid_out, load_network
from .sources import check_there, images_for, is_run

_logger = logging.getLogger(__name__)


class ComparisonFolder(Folder):
    """A comparison on disk. ``asked.json`` says what is compared; ``state/`` is there until it is finished."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.json = self.path / "comparison.json"
        self.csv = self.path / "comparison.csv"
        self.markdown = self.path / "comparison.md"
        self.page = self.path / "comparison.html"
        self.plots = self.path / "plots"
        self.asked = self.path / "asked.json"
        self.state = self.path / "state"

    def check(self) -> None:
        """Refuse a folder that holds something else, or that cannot be written to."""
        if not os.path.exists(self.asked):
            self.check_out(but=self.asked)
        elif not self.json.exists():
            self.check_writable()

    def begin(self, asked: dict[str, Any]) -> Comparison | None:
        """`finished`; where it is None, the folder says what is asked."""
        if (there := self.finished(asked)) is None:
            if self.asked.exists():
                _logger.info("resuming in %s", self)
            write_text(self.asked, json.dumps(asked, indent=1) + "\n")
        return there

    def finished(self, asked: dict[str, Any]) -> Comparison | None:
        """The finished comparison in the folder; None if it is not finished yet. Refuses another comparison."""
        if not self.asked.exists():
            return None
        before = self.read_json(self.asked)
        if not isinstance(before, dict):
            raise FileError(f"{self.asked}: is damaged (it holds no object); give another --out")
        free = set() if self.json.exists() else {"curve"}  # drawn last: it may change before a comparison is finished
        names = [key for key in before | asked if key not in free and before.get(key) != asked.get(key)]
        if names:
            raise ConfigError(
                f"out={self}: holds another comparison, with other {', '.join(names[:3])}; give another --out"
            )
        if not self.json.exists():
            return None
        comparison = Comparison.from_json(self.json)
        shutil.rmtree(self.state, ignore_errors=True)  # a process killed meanwhile has left it
        return comparison

    def write(self, comparison: Comparison) -> None:
        write_text(self.csv, comparison.to_csv())
        write_text(self.markdown, comparison.to_markdown())
        write_text(self.page, comparison.to_html())
        write_plots(comparison.drawings(), self.plots)
        comparison.to_json(self.json)  # the last: where it is, all the others are
        shutil.rmtree(self.state, ignore_errors=True)

    def clear(self) -> None:
        """Undo the beginning of a comparison that has judged nothing; remove the folder if it is empty then."""
        if not self.state.exists():
            self.remove(self.asked)


@dataclass(frozen=True)
class _Source:
    name: str
    path: str
    arch: str | None
    key: str | None = None


def judge_networks(
    sources: Sequence[str],
    out: str | os.PathLike[str],
    *,
    arch: Sequence[str] = (),
    key: str | None = None,
    data: str | None = None,
    data_root: str | None = None,
    download: bool = True,
    image_size: int | None = None,
    channels: int | None = None,
    progress: bool = True,
    **options: Unpack[CompareOptions],
) -> tuple[ComparisonFolder, Comparison]:
    """Judge networks, named by where they are, on the test images of a data set.

    After a kill, the same call resumes; after the end, it returns what is there. Processes that ``torchrun`` started
    share the work; rank 0 writes.

    Args:
        sources: checkpoints, ``robustbench:NAME``, ``timm:NAME``, ``hf:owner/name``, or folders of
            finished runs, whose pruned networks are meant; each may have a name before it, ``NAME=PATH``. The others
            are compared with the first.
        out: folder of the comparison.
        arch: of the checkpoints: one for all, or one for each source; ``package.module:function`` for your own.
        key: of the state dict in checkpoints with several.
        data: name of the data set. Default: a run's.
        data_root, download, image_size, channels: see `DataConfig`.
        progress: whether bars are shown.
        options: how to judge; see `JudgeSettings`. ``eps`` and ``output`` default to a run's; ``sample`` 0 is all.
    """
    fields = {"root": data_root, "image_size": image_size, "channels": channels}
    with shared():
        return _judge(ComparisonFolder(out), sources, arch, key, data, download, fields, progress, options)


def _judge(
    folder: ComparisonFolder,
    sources: Sequence[str],
    arch: Sequence[str],
    key: str | None,
    data: str | None,
    download: bool,
    fields: dict[str, Any],
    progress: bool,
    options: CompareOptions,
) -> tuple[ComparisonFolder, Comparison]:
    on_main(folder.check)
    named = [replace(source, key=key) for source in _named(sources, arch)]
    runs = [RunFolder(source.path) for source in named if is_run(source.path)]
    configs = [PwoAConfig.from_yaml(run.config, changes={"device": None}) for run in runs]
    sample = options.pop("sample", None)
    eps = next((config.eps for config in configs if config.eps), None)
    output = next((config.output for config in configs if config.output is not None), None)
    settings = JudgeSettings.of(options, protocol="standard", eps=eps, output=output)
    own = next((config.data for config in configs if config.data is not None), None)
    images = images_for([(each.path, each.arch) for each in named], data, own, download=download, **fields)
    classes, shape = data_set(images).describe(images)
    wanted = Wanted(classes, shape[0], images.name, settings.norm)
    networks = {source.name: _network(source, wanted, shape, settings.mean is None) for source in named}
    task = bind_test_images(settings, images, sample)
    device = str(settings.device or "cpu")
    models = {name: laid_out(network, task.images.pixels, device) for name, network in networks.items()}
    asked = _asked(models, task, classes)
    with folder.locked() if is_main() else nullcontext():
        if (there := on_main(partial(folder.begin, asked))) is not None:
            _logger.info("%s is finished already", folder)
            return folder, there
        try:
            comparison = compare_task(models, task, state=folder.state, progress=progress)
        except InputError:
            if is_main():
                folder.clear()
            raise
        on_main(partial(folder.write, comparison))
    return folder, comparison


def _asked(models: Mapping[str, nn.Module], task: Task, classes: int) -> dict[str, Any]:
    """Everything that decides what a comparison finds, JSON-ready."""
    settings, images = task
    curve = settings.curve_attack
    attacked = AttackSettings(eps=1.0, n_classes=classes, step_size=settings.step_size)
    return {
        "networks": {name: digest_of(model) for name, model in models.items()},
        "images": images.sha256,
        "attacks": {attack.name: json_ready(attack.parameters(attacked)) for attack in settings.attacks},
        "protocol": [settings.protocol.name, settings.protocol.version],
        "norm": settings.norm,
        "eps": settings.eps,
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "device": str(settings.device or "cpu"),
        "normalisation": [list(settings.mean), list(settings.std)] if settings.mean and settings.std else None,
        "curve": [curve.name, json_ready(curve.parameters(attacked)), curve.code, *settings.curve]
        if settings.curve
        else [],
        "code": [attack.code for attack in settings.attacks],
        "versions": installed_versions(),
        **settings.model_dump(mode="json", include={"alarms", "pixel_range", "output"}, exclude_unset=True),
    }


def default_out(sources: Sequence[str]) -> Path:
    """The default folder of a comparison: ``judged/`` and the networks' names."""
    names = "-".join(source.name for source in _named(sources, ()))
    return Path("judged") / re.sub(r"[^A-Za-z0-9._-]+", "-", names)[:80]


def _named(sources: Sequence[str], arch: Sequence[str]) -> list[_Source]:
    """The sources, each with a unique name and its architecture."""
    if len(arch) not in (0, 1, len(sources)):
        raise ConfigError(f"arch: {len(arch)} are given for {len(sources)} networks; give one for all, or one for each")
    archs = [*arch] if len(arch) == len(sources) else [next(iter(arch), None)] * len(sources)
    found: dict[str, _Source] = {}
    for source, of_source in zip(sources, archs, strict=True):
        name, equals, path = source.partition("=")
        if not equals or os.path.exists(source):
            name, path = _short_name(source), source
        if not path or not name.strip():
            raise ConfigError(f"{source!r}: give NAME=PATH, or a path")
        if name in found and all(path != other.path for other in found.values()):
            name = path  # two files of one name
        if name in found:
            raise ConfigError(f"{source!r} comes twice; give NAME=PATH with different names")
        check_there(path)
        found[name] = _Source(name, path, of_source)
    return list(found.values())


def _short_name(path: str) -> str:
    if is_named(path):
        return path.partition(":")[2].rpartition("/")[2]
    plain = Path(path)
    return plain.resolve().name if os.path.isdir(plain) else plain.stem


def _network(source: _Source, wanted: Wanted, shape: tuple[int, int, int], normalise: bool) -> nn.Module:
    if is_run(source.path):
        return pruned_network(source.path, arch=source.arch if names_code(source.arch) else None)
    return load_network(source.path, source.arch, source.key, wanted, shape, normalise=normalise)
