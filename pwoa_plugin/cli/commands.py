"""What a command is; ``pwoa init``, ``prune`` and ``show``."""

from __future__ import annotations

import json
import os
import shlex
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from typer import Argument, Option

from .._ranks import go_on, is_main, together
from .._text import did_you_mean
from ..errors import FileError, InputError
from .output import say, set_up_logging, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from ..config import PwoAConfig
    from ..method.callback import Callback


Quiet = Annotated[bool, Option("--quiet", help="no progress, only errors and results")]
JSONLines = Annotated[bool, Option("--json", help="progress and result as JSON lines on stdout")]

# What networks are judged by, in all commands that judge.
DataName = Annotated[
    str | None, Option(help="mnist, cifar10, cifar100, mnist-sample or folder", show_default="the run's own")
]
DataRoot = Annotated[str | None, Option(help="folder of the data", show_default="the run's own, or data")]
NoDownload = Annotated[bool, Option("--no-download", help="never download images")]
ImageSize = Annotated[int | None, Option(help="of --data folder")]
Channels = Annotated[int | None, Option(help="of --data folder: 1 or 3")]
Eps = Annotated[str | None, Option(help="radius in pixel units, as 8/255", show_default="the run's own")]
Norm = Annotated[str | None, Option(help="Linf or L2", show_default="the protocol's, or Linf")]
Part = Annotated[
    str | None, Option(help="index or key of the logits in what the network returns", show_default="the run's own")
]

_CONFIGS = files("pwoa_plugin") / "configs"


class Command(ABC):
    """A command. The fields are its arguments and options; the docstring of the class is its help.

    Attributes:
        needs: the module of this package that it calls, with all that takes long to import.
        resumes: whether ``--resume`` continues it; others continue, or begin anew, by the same line.
    """

    needs: ClassVar[str]
    resumes: ClassVar[bool] = False

    @abstractmethod
    def run(self, line: list[str]) -> int:
        """Do it.

        Args:
            line: the whole command line, from ``pwoa`` on.

        Returns:
            The exit status.
        """

    def _given(self, *names: str) -> dict[str, Any]:
        """Those of these options that were given, as keywords."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def _presets() -> list[str]:
    return sorted(entry.name.removesuffix(".yaml") for entry in _CONFIGS.iterdir())


@dataclass(kw_only=True)
class Init(Command):
    """Write a commented config to start from."""

    needs = "_files"

    config: Annotated[Path, Argument(help="file to write")]
    preset: Annotated[str, Option(help=f"one of {', '.join(_presets())}", autocompletion=_presets)] = "mnist"
    force: Annotated[bool, Option("--force", help="replace an existing file")] = False

    def run(self, line: list[str]) -> int:
        from .._files import write_text

        if self.preset not in _presets():
            hint = did_you_mean(self.preset, _presets(), f"give {', '.join(_presets())}")
            raise InputError(f"--preset {self.preset}: there is no such preset{hint}")
        if os.path.isdir(self.config):
            raise FileError(f"{self.config}: is a folder; name a file in it")
        if os.path.exists(self.config) and not self.force:
            raise FileError(f"{self.config}: exists; give --force to replace it")
        write_text(self.config, (_CONFIGS / f"{self.preset}.yaml").read_text(encoding="utf-8"))
        following = f"pwoa prune {shlex.quote(str(self.config))} --out runs/first"
        say(f"{self.config} is written; next: {following}")
        return 0


@dataclass(kw_only=True)
class Prune(Command):
    """Prune by a config, in a folder that can be resumed from."""

    needs = "runs.prune"
    resumes = True

    config: Annotated[Path, Argument(help="YAML file; `pwoa init` writes one")]
    out: Annotated[Path, Option(help="folder of the run")]
    resume: Annotated[bool, Option("--resume", help="continue the run in --out, or begin it")] = False
    seed: Annotated[int | None, Option(help="replaces the config's seed")] = None
    checkpoint: Annotated[str | None, Option(help="replaces model.checkpoint")] = None
    key: Annotated[str | None, Option(help="replaces model.key: of the state dict in a checkpoint with several")] = None
    arch: Annotated[str | None, Option(help="replaces model.arch; may be your package.module:function")] = None
    device: Annotated[str | None, Option(help="cpu, cuda...; replaces the config's device")] = None
    output: Annotated[str | None, Option(help="replaces output: index or key of the logits in what is returned")] = None
    set: Annotated[list[str] | None, Option(metavar="FIELD=VALUE", help="as admm.epochs=0; repeatable")] = None
    save_every: Annotated[float, Option(metavar="SECONDS", help="time between two saved states")] = 60.0
    log: Annotated[
        list[str] | None, Option(metavar="TRACKER", help="tensorboard, wandb or mlflow, in OUT/logs; repeatable")
    ] = None
    quiet: Quiet = False
    json: JSONLines = False

    def run(self, line: list[str]) -> int:
        with together():
            config = self._read_config()
        console = set_up_logging(self.quiet or not is_main(), self.json and is_main())
        from ..models import names_code
        from ..runs.callbacks import Stopped
        from ..runs.files import read_report
        from ..runs.headline import headline
        from ..runs.prune import prune

        try:
            folder = prune(
                config,
                self.out,
                resume=self.resume,
                arch=self.arch,
                save_every=self.save_every,
                callbacks=[*(self._progress(console) if config.progress or self.json else []), *self._trackers()],
                command=line,
            )
        except Stopped as stopped:
            again = [argument for argument in line if argument != "--resume"]
            said = f"stopped, and saved; {go_on()}: {shlex.join([*again, '--resume'])}"
            if is_main():
                say(said, sys.stderr)
            return 128 + stopped.signal
        if not is_main():
            return 0
        if self.json:
            write_json("finished", folder=str(folder), report=str(folder.report))
        elif not self.quiet:
            judging = f"pwoa evaluate {shlex.quote(str(folder))}"
            if names_code(self.arch):
                judging += f" --arch {shlex.quote(str(self.arch))}"
            say(" ".join(headline(read_report(folder.path))), sys.stderr)
            say(f"Its report is {folder.page}. How robust it is: {judging}", sys.stderr)
        return 0

    def _read_config(self) -> PwoAConfig:
        from .._yaml import YAMLError, parse_yaml
        from ..config import ConfigError, PwoAConfig
        from ..models import names_code, source_of

        changes: dict[str, Any] = {}
        for text in self.set or ():
            name, equals, value = text.partition("=")
            if not equals or not name:
                raise ConfigError(f"--set {text}: give FIELD=VALUE, as admm.epochs=0")
            try:
                changes[name] = parse_yaml(value)
            except YAMLError as error:
                raise ConfigError(f"--set {text}: {error}") from None
        for name in ("seed", "device", "output"):
            if (value := getattr(self, name)) is not None:
                changes[name] = value
        if self.checkpoint is not None:
            changes["model.checkpoint"] = self.checkpoint
            if (source := source_of(self.checkpoint)) is not None:  # network and weights in one
                decided = [*source.fixed, *(["std"] if "mean" in source.fixed else [])]
                changes |= dict.fromkeys(f"model.{name}" for name in decided)
        if self.key is not None:
            changes["model.key"] = self.key
        if self.arch is not None:  # your own code goes to `prune`; a config holds none
            changes["model.arch"] = None if names_code(self.arch) else self.arch
        return PwoAConfig.from_yaml(self.config, changes=changes)

    def _progress(self, console: Console) -> list[Callback]:
        from ..progress import JSONProgress, default_progress

        if self.quiet:
            return []
        return [JSONProgress(sys.stdout)] if self.json else [default_progress(console)]

    def _trackers(self) -> list[Callback]:
        if not self.log:
            return []
        from ..trackers import TRACKERS

        for name in self.log:
            if name not in TRACKERS:
                hint = did_you_mean(name, TRACKERS, f"give {', '.join(TRACKERS)}")
                raise InputError(f"--log {name}: unknown{hint}")
        return [TRACKERS[name](self.out / "logs" / name) for name in dict.fromkeys(self.log)]


@dataclass(kw_only=True)
class Show(Command):
    """Print a run: layers, terms of the loss, size, robustness."""

    needs = "runs.rendering"

    folder: Annotated[Path, Argument(help="the --out of `pwoa prune`")]
    json: Annotated[bool, Option("--json", help="the report as JSON")] = False

    def run(self, line: list[str]) -> int:
        from ..runs.files import read_report

        report = read_report(self.folder)
        if self.json:
            sys.stdout.write(json.dumps(report.to_dict(), indent=1) + "\n")
            return 0
        from rich.console import Console

        from ..runs.rendering import show

        show(report, Console())
        return 0
