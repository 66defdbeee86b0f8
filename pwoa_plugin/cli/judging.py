"""``pwoa evaluate`` and ``pwoa compare``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .._launch import is_launched_here, launch_line, needs_launching
from .._ranks import is_main
from ..errors import InputError
from .commands import (
    Channels,
    Command,
    DataName,
    DataRoot,
    Eps,
    ImageSize,
    JSONLines,
    NoDownload,
    Norm,
    Part,
    Quiet,
)
from .output import say, set_up_logging, write_json

#: How to judge: options that Python's functions know by the same names.
_HOW = (
    "attacks",
    "norm",
    "eps",
    "sample",
    "seed",
    "batch_size",
    "device",
    "mean",
    "std",
    "output",
    "curve",
    "curve_attack",
)


@dataclass(kw_only=True)
class _Judging(Command):
    """What `Evaluate` and `Compare` share."""

    needs = "runs.compare"

    arch: Annotated[
        list[str] | None,
        Option(metavar="ARCH...", help="of checkpoints, one for all or one for each; may be package.module:function"),
    ] = None
    key: Annotated[str | None, Option(help="of the state dict in checkpoints with several, as state_dict_ema")] = None
    data: DataName = None
    data_root: DataRoot = None
    no_download: NoDownload = False
    image_size: ImageSize = None
    channels: Channels = None
    eps: Eps = None
    norm: Norm = None
    protocol: Annotated[
        str | None,
        Option(help="quick, paper, standard or a YAML file", show_default="paper; to compare, standard"),
    ] = None
    attacks: Annotated[
        list[str] | None,
        Option(
            metavar="NAME...",
            help="replace a protocol: PGD-n, CW-n, -T: targeted; art:Class(option=value); your module:Class",
        ),
    ] = None
    sample: Annotated[
        int | None,
        Option(
            "--sample",
            "--images",
            help="test images, 0: all",
            show_default="the protocol's, else all; of a run at most 1000",
        ),
    ] = None
    batch_size: Annotated[int, Option(help="images in a batch")] = 256
    seed: Annotated[int, Option(help="of the draw and of the attacks")] = 0
    mean: Annotated[list[float] | None, Option(metavar="VALUE...", help="the network wants (x - mean) / std")] = None
    std: Annotated[list[float] | None, Option(metavar="VALUE...", help="goes with --mean")] = None
    output: Part = None
    curve: Annotated[list[str] | None, Option(metavar="EPS...", help="radii of a security curve")] = None
    curve_attack: Annotated[str | None, Option(help="attack of the curve", show_default="PGD-20")] = None
    device: Annotated[str | None, Option(help="cpu, cuda...", show_default="the run's own")] = None
    processes: Annotated[
        int | None, Option(help="of this machine, that share the images", show_default="1, or those of torchrun")
    ] = None
    out: Annotated[
        Path | None, Option(help="folder of the table and page", show_default="judged/NAMES, or the run's own")
    ] = None
    quiet: Quiet = False
    json: JSONLines = False

    def _until_stopped(self, line: list[str], judge: Callable[[], int]) -> int:
        """The status of ``judge``; after Ctrl-C, how to go on is said."""
        from ..robustness.sharing import shared
        from ..runs.callbacks import Stopped
        from ..runs.stopping import stopping_at_once

        if needs_launching(self.processes):
            return launch_line(line, self.processes or 1)
        set_up_logging(self.quiet or not is_main(), self.json and is_main())
        try:
            with stopping_at_once(), shared():
                return judge()
        except Stopped as stopped:
            if is_main() and not is_launched_here():
                sys.stderr.write(f"stopped; finished batches are kept; go on with: {shlex.join(line)}\n")
            return 128 + stopped.signal

    def _judge_together(self, networks: list[str], protocol: str | None) -> int:
        if self.curve_attack and not self.curve:
            raise InputError(f"--curve-attack {self.curve_attack}: goes with --curve and its radii")
        from ..runs.compare import default_out, judge_networks

        folder, comparison = judge_networks(
            networks,
            self.out or default_out(networks),
            protocol=protocol,
            download=not self.no_download,
            progress=not self.quiet and not self.json,
            **self._given("arch", "key", "data", "data_root", "image_size", "channels", *_HOW),
        )
        if not is_main():
            return 0
        if self.json:
            write_json("compared", folder=str(folder), **comparison.to_dict())
            return 0
        say(str(comparison))
        if not self.quiet:
            say(f"The page is {folder.page}", sys.stderr)
        return 0


@dataclass(kw_only=True)
class Evaluate(_Judging):
    """Judge a network through ART.

    The network is a run's, a checkpoint or RobustBench's. The judgement of a run is added to its report.
    """

    network: Annotated[
        str, Argument(help="the --out of `pwoa prune`, a checkpoint, or robustbench:NAME, timm:NAME, hf:owner/name")
    ]
    dense: Annotated[bool, Option("--dense", help="of a run: judge the network before pruning, too")] = False

    def run(self, line: list[str]) -> int:
        return self._until_stopped(line, self._judge)

    def _judge(self) -> int:
        in_its_folder = os.path.isdir(self.network) and self.data is None and self.out is None
        if not in_its_folder and self.dense:
            raise InputError("--dense goes with a run that is judged in its own folder; use `pwoa compare` for others")
        if not in_its_folder:
            return self._judge_together([self.network], self.protocol or (None if self.attacks else "paper"))
        for name in ("mean", "std", "curve", "curve_attack", "image_size", "channels", "key"):
            if getattr(self, name):
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} does not go with a run in its own folder; give --out as well")
        return self._judge_run()

    def _judge_run(self) -> int:
        from ..runs.evaluate import judge
        from ..runs.folder import RunFolder

        if self.arch and len(self.arch) > 1:
            raise InputError(f"--arch {' '.join(self.arch)}: a run has one network; give one")
        reports = judge(
            self.network,
            dense=self.dense,
            arch=self.arch[0] if self.arch else None,
            download=not self.no_download,
            progress=not self.quiet and not self.json,
            **self._given("data_root", "protocol", *_HOW),
        )
        if not is_main():
            return 0
        for name, report in reports.items():
            if self.json:
                write_json("judged", network=name, **report.to_dict())
            else:
                say(f"{name}: {report}")
        if not self.quiet and not self.json:
            say(f"Its report is {RunFolder(self.network).page}", sys.stderr)
        return 0


@dataclass(kw_only=True)
class Compare(_Judging):
    """Judge networks on the same images.

    Writes one table and one page, and says which differences exceed chance. The first network is the one that the
    others are compared with.
    """

    networks: Annotated[
        list[str],
        Argument(
            help="checkpoint, robustbench:NAME, timm:NAME, hf:owner/name or run; NAME=PATH names it", metavar="NETWORK"
        ),
    ]

    def run(self, line: list[str]) -> int:
        return self._until_stopped(line, lambda: self._judge_together(self.networks, self.protocol))
