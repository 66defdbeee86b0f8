"""`pwoa evaluate`: a run's network judged through ART, on the test images of its config."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict

from torch import nn

from .._digest import digest_of
from .._files import write_text
from .._random import check_seed
from ..backends import backend_of
from ..config import ConfigError, PwoAConfig
from ..data import load_test
from ..models.robustbench import PREFIX
from ..robustness import Report, evaluate
from ..robustness.inputs import as_protocol
from .files import write_report
from .folder import RunFolder
from .network import laid_out, load_weights, make_network

__all__ = ["judge", "pruned_network"]


def judge(
    path: str | os.PathLike[str],
    *,
    eps: float | str | None = None,
    protocol: str | os.PathLike[str] | None = None,
    norm: str | None = None,
    attacks: Sequence[str] | None = None,
    images: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    dense: bool = False,
    arch: str | None = None,
    data_root: str | None = None,
    download: bool = True,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Report]:
    """Judge what a run made, and add it to the run's report.

    Args:
        path: of a finished run.
        eps: radius in pixel units, also as ``8/255``; None: the protocol's or the config's.
        protocol, norm, attacks: see `evaluate`.
        images: how many test images, drawn by class; None: the protocol's number, and failing that 1000, or all if
            there are fewer; 0: all.
        batch_size: images in a batch.
        seed: of the draw and of the attacks.
        dense: judge the network before pruning, too.
        arch: where the run had an ``--arch`` of the user's own.
        data_root: in place of the config's ``data.root``.
        download: whether missing images may be downloaded, where the config does not forbid it.
        device: in place of the config's.
        progress: whether bars are shown.

    Returns:
        ``{"pruned": Report}``, and ``"dense"``. Each is in ``robustness/`` of the folder as soon as it is done, and so
        are its finished batches before: the same call after a kill goes on from them.

    Raises:
        ValueError: something given cannot be used, a file of the run is damaged, or there is no finished run.
        RunError: another process works in the folder.
    """
    check_seed(seed)
    folder = RunFolder(path)
    facts = folder.read_facts()
    if facts.status != "finished":
        raise ConfigError(f"{folder}: the run is not finished; go on with `pwoa prune ... --resume`")
    config = PwoAConfig.from_yaml(folder.config)
    how = as_protocol(protocol, attacks, "paper")
    if eps is None:
        eps = how.eps
    if eps is not None:
        config.eps = eps  # type: ignore[assignment]  # checked, and 8/255 read, on assignment
    if config.eps is None:
        raise ConfigError("eps is missing, here and in the run's config; give --eps, as 8/255")
    if config.data is None:
        raise ConfigError(f"{folder}: its images were given in Python; judge with pwoa_plugin.evaluate(model, images)")
    if data_root is not None:
        config.data.root = data_root
    config.data.download = config.data.download and download
    if device is not None:
        config.device = device
    networks: dict[str, nn.Module] = {"pruned": _pruned(folder, config, arch)}
    at_most = how.sample or 1000
    if dense:
        networks["dense"] = _made(folder, config, arch)
        load_weights(networks["dense"], config)
        if digest_of(networks["dense"]) != facts.model.sha256:
            assert config.model is not None
            raise ConfigError(
                f"model.checkpoint={config.model.checkpoint!r}: these are not the weights that {folder} was pruned from"
            )
    data = load_test(config.data, images=images or None, at_most=None if images == 0 else at_most, seed=seed)
    reports: dict[str, Report] = {}
    with folder.locked():
        state = folder.robustness / "state"
        for name, model in networks.items():
            reports[name] = evaluate(
                laid_out(model, data[0], config.device),
                data,
                eps=config.eps,
                norm=norm,
                protocol=how,
                sample=len(data[0]),
                state=state,
                batch_size=batch_size,
                seed=seed,
                device=config.device,
                pixel_range=config.pixel_range,
                progress=name if progress else False,
            )
            _keep(folder, name, reports[name])
        shutil.rmtree(state, ignore_errors=True)
        write_report(folder)
    return reports


def pruned_network(path: str | os.PathLike[str], *, arch: str | None = None) -> nn.Module:
    """The network that a finished run made, its zeros where the masks have them.

    Args:
        path: of the run.
        arch: where the run had an ``--arch`` of the user's own.

    Raises:
        ValueError: there is no finished run, or a file of it is damaged.
    """
    folder = RunFolder(path)
    if folder.read_facts().status != "finished":
        raise ConfigError(f"{folder}: the run is not finished; go on with `pwoa prune ... --resume`")
    return _pruned(folder, PwoAConfig.from_yaml(folder.config), arch)


def _made(folder: RunFolder, config: PwoAConfig, arch: str | None) -> nn.Module:
    facts = folder.read_facts()
    if facts.images.keys() != {"classes", "channels"}:
        raise ConfigError(f"{folder}: its network was given in Python; judge with pwoa_plugin.evaluate(model, images)")
    name = facts.model.arch
    if ":" in name and not name.startswith(PREFIX) and arch is None:
        raise ConfigError(f"arch: the run's network is your own code; give --arch {name}")
    return make_network(config, arch=arch or name, classes=facts.images["classes"], channels=facts.images["channels"])


def _pruned(folder: RunFolder, config: PwoAConfig, arch: str | None) -> nn.Module:
    """The pruned network, its zeros where the masks have them, or with fewer channels."""
    return backend_of(config).load(_made(folder, config, arch), folder)


def _keep(folder: RunFolder, name: str, report: Report) -> None:
    config = report.config
    settings = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()
    file = f"{name}-eps{config.eps:.6g}-{config.n_images}-images-seed{config.seed}-{settings[:8]}.json"
    write_text(folder.robustness / file, json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n")
    folder.write_facts(robustness={**folder.read_facts().robustness, name: file})
