"""`pwoa evaluate`: judge a run's network through ART, on the test images of its config."""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from functools import partial
from typing import Any, Unpack

from torch import nn

from .._digest import digest_of, digest_of_json
from ..backends import backend_of
from ..config import ConfigError, DataConfig, PwoAConfig
from ..data import load_test
from ..models import names_code
from ..robustness import JudgeSettings, Report
from ..robustness.evaluation import judge_task
from ..robustness.settings import JudgeOptions, Task
from ..robustness.sharing import is_main, main_first, on_main, shared
from .files import read_report, write_report
from .folder import RunFolder
from .network import laid_out, load_weights, network_of


def judge(
    path: str | os.PathLike[str],
    *,
    dense: bool = False,
    arch: str | None = None,
    data_root: str | None = None,
    download: bool = True,
    progress: bool = True,
    **options: Unpack[JudgeOptions],
) -> dict[str, Report]:
    """Judge what a finished run made, and add it to the run's report. After a kill, the same call resumes.

    Processes that ``torchrun`` started share the work; rank 0 writes.

    Args:
        path: of the run.
        dense: judge the network before pruning, too.
        arch: where the run had an ``--arch`` of your own.
        data_root: in place of the config's ``data.root``.
        download: whether missing images may be downloaded, where the config does not forbid it.
        progress: whether bars are shown.
        options: how to judge; see `JudgeSettings`. ``eps``, ``device``, ``pixel_range`` and ``output`` default to the
            config's; ``sample`` to the protocol's number, else 1000, or all if there are fewer; 0 is all.

    Returns:
        ``{"pruned": Report}``, and ``"dense"``.
    """
    with shared():
        return _judge(RunFolder(path), dense, arch, data_root, download, progress, options)


def _judge(
    folder: RunFolder,
    dense: bool,
    arch: str | None,
    data_root: str | None,
    download: bool,
    progress: bool,
    options: JudgeOptions,
) -> dict[str, Report]:
    config = _config_of_finished(folder, **({} if options.get("device") is None else {"device": None}))
    read_report(folder.path)  # a damaged file is told now, not after the attacks
    on_main(folder.check_writable)
    if config.data is None:
        raise ConfigError(f"{folder}: its images were given in Python; judge with pwoa_plugin.evaluate(model, images)")
    sample = options.pop("sample", None)
    of_run = {name: getattr(config, name) for name in ("eps", "device", "pixel_range", "output")}
    settings = JudgeSettings.of(options, **of_run)
    if data_root is not None:
        config.data.root = data_root
    config.data.download = config.data.download and download
    networks = {"pruned": _pruned(folder, config, arch)}
    if dense:
        networks["dense"] = _dense(folder, config, arch)
    task = bind_test_images(settings, config.data, sample, at_most=1000)
    reports: dict[str, Report] = {}
    with folder.locked() if is_main() else nullcontext():
        state = folder.robustness / "state"
        for name, model in networks.items():
            laid_out(model, task.images.pixels, str(settings.device or "cpu"))
            reports[name] = judge_task(model, task, state=state, progress=name if progress else False)
            on_main(partial(_keep, folder, name, reports[name]))
        on_main(partial(write_report, folder))
        if is_main():
            shutil.rmtree(state, ignore_errors=True)
    return reports


def bind_test_images(settings: JudgeSettings, data: DataConfig, sample: int | None, at_most: int | None = None) -> Task:
    """Bind settings to the test images of a data set.

    ``sample`` images are drawn by class; 0: all; None: the protocol's number, else ``at_most``, or all if there are
    fewer.
    """
    most = None if sample == 0 else settings.protocol.sample or at_most
    with main_first() if data.download else nullcontext():
        pair = load_test(data, images=sample or None, at_most=most, seed=settings.seed)
    return settings.model_copy(update={"sample": len(pair[0])}).bind(pair)


def pruned_network(path: str | os.PathLike[str], *, arch: str | None = None) -> nn.Module:
    """The network that a finished run made, with the zeros of its masks or with fewer channels."""
    folder = RunFolder(path)
    return _pruned(folder, _config_of_finished(folder, device=None), arch)


def _config_of_finished(folder: RunFolder, **changes: Any) -> PwoAConfig:
    if folder.read_facts().status != "finished":
        raise ConfigError(f"{folder}: the run is not finished; resume it with `pwoa prune ... --resume`")
    return PwoAConfig.from_yaml(folder.config, changes=changes)  # this machine may lack the run's own device


def _pruned(folder: RunFolder, config: PwoAConfig, arch: str | None) -> nn.Module:
    return backend_of(config).load(_architecture(folder, config, arch), folder)


def _dense(folder: RunFolder, config: PwoAConfig, arch: str | None) -> nn.Module:
    model = _architecture(folder, config, arch)
    assert config.model is not None
    checkpoint = config.model.checkpoint
    load_weights(model, checkpoint, config.model.key)
    if digest_of(model) != folder.read_facts().model.sha256:
        raise ConfigError(f"model.checkpoint={checkpoint!r}: these are not the weights that {folder} was pruned from")
    return model


def _architecture(folder: RunFolder, config: PwoAConfig, arch: str | None) -> nn.Module:
    facts = folder.read_facts()
    if facts.images.keys() != {"classes", "channels"}:
        raise ConfigError(f"{folder}: its network was given in Python; judge with pwoa_plugin.evaluate(model, images)")
    name = facts.model.arch
    if names_code(name) and arch is None:
        raise ConfigError(f"arch: the run's network is your own code; give --arch {name}")
    return network_of(config, arch or name, **facts.images)


def _keep(folder: RunFolder, name: str, report: Report) -> None:
    config = report.config
    settings = digest_of_json(config.model_dump(mode="json"))
    file = f"{name}-eps{config.eps:.6g}-{config.n_images}-images-seed{config.seed}-{settings[:8]}.json"
    report.to_json(folder.robustness / file)
    folder.write_facts(robustness={**folder.read_facts().robustness, name: file})
