"""The command line: ``pwoa init``, ``prune``, ``evaluate``, ``compare``, ``show``.

Exit status: 0 done; 1 the run cannot go on (the loss is NaN, the disk is full); 2 bad input, in one line; 70 a fault of
the package, with its traceback; 130 and 143 stopped by Ctrl-C and SIGTERM, with the state saved. What is slow to import
is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FileError, InputError, PwoAError, RunError, TrainingError

if TYPE_CHECKING:
    from rich.console import Console

    from .config import PwoAConfig
    from .method.callback import Callback

__all__ = ["main"]


def _presets() -> list[str]:
    return sorted(entry.name.removesuffix(".yaml") for entry in (files(__package__) / "configs").iterdir())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """As argparse does, in one line."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (--help tells more)\n")


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = _Parser(
        prog="pwoa",
        description="Prune an adversarially robust network without adversarial examples, and say how robust it is.",
        epilog="pwoa init prune.yaml; pwoa prune prune.yaml --out runs/a; pwoa evaluate runs/a; pwoa show runs/a",
    )
    parser.add_argument("--version", action="version", version=f"pwoa-plugin {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.set_defaults(run=run, prog=sub.prog)
        return sub

    sub = command("init", _init, "Write a commented config to start from.")
    sub.add_argument("config", type=Path, help="file to write")
    sub.add_argument("--preset", choices=_presets(), default="mnist", help="what to start from")
    sub.add_argument("--force", action="store_true", help="replace a file of that name")

    sub = command("prune", _prune, "Prune by a config, in a folder that can be resumed from.")
    sub.add_argument("config", type=Path, help="YAML file; `pwoa init` writes one")
    sub.add_argument("--out", type=Path, required=True, help="folder of the run")
    sub.add_argument("--resume", action="store_true", help="go on with the run in --out, or begin it")
    sub.add_argument("--seed", type=int, help="in place of the config's")
    sub.add_argument("--checkpoint", help="in place of the config's model.checkpoint")
    sub.add_argument("--arch", help="in place of the config's model.arch; may be package.module:function of your own")
    sub.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="another value, as admm.epochs=0; repeatable"
    )
    sub.add_argument("--save-every", type=float, default=60.0, metavar="SECONDS", help="between two saved states")
    _add_loudness(sub)

    sub = command(
        "evaluate",
        _evaluate,
        "Judge a network through ART: a run's (added to its report), a checkpoint or RobustBench's.",
    )
    sub.add_argument("network", help="the --out of `pwoa prune`, a checkpoint, or robustbench:NAME")
    sub.add_argument("--dense", action="store_true", help="of a run: judge the network before pruning, too")
    _add_judging(sub, protocol="paper", images="of a run at most 1000 unless given")

    sub = command(
        "compare", _compare, "Judge networks on the same images: one table, one page, and what is beyond chance."
    )
    sub.add_argument(
        "networks", nargs="+", metavar="NETWORK", help="checkpoint, robustbench:NAME or run; NAME=PATH names it"
    )
    _add_judging(sub, protocol="standard", images="all unless given")

    sub = command("show", _show, "Print a run: layers, terms of the loss, size, robustness.")
    sub.add_argument("folder", type=Path, help="the --out of `pwoa prune`")
    sub.add_argument("--json", action="store_true", help="the report as JSON")
    return parser


def _add_judging(sub: argparse.ArgumentParser, *, protocol: str, images: str) -> None:
    add = sub.add_argument
    add("--arch", nargs="+", default=[], help="of checkpoints, one for all or one for each; package.module:function")
    add("--data", help="mnist, cifar10, cifar100, mnist-sample, folder; a run's own unless given")
    add("--data-root", help="folder of the data; a run's own, or data, unless given")
    add("--no-download", action="store_true", help="never download images")
    add("--image-size", type=int, help="of --data folder")
    add("--channels", type=int, choices=(1, 3), help="of --data folder")
    add("--eps", help="radius in pixel units, as 8/255; a run's own unless given")
    add("--norm", help="Linf or L2; the protocol's, or Linf")
    add("--protocol", help=f"quick, paper, standard, or a YAML file; {protocol} unless given")
    add("--attacks", nargs="+", metavar="NAME", help="in place of a protocol; PGD-n and CW-n for any n, -T: targeted")
    add("--sample", "--images", type=int, metavar="N", help=f"test images, drawn by class; 0: all; {images}")
    add("--batch-size", type=int, default=256, help="images in a batch")
    add("--seed", type=int, default=0, help="of the draw and of the attacks")
    add("--mean", type=float, nargs="+", help="by channel, where networks want normalised images; eps stays in pixels")
    add("--std", type=float, nargs="+", help="goes with --mean")
    add(
        "--curve",
        nargs="+",
        default=[],
        metavar="EPS",
        help="a security curve through these radii; for a run alone give --out",
    )
    add("--curve-attack", metavar="NAME", help="of the curve; PGD-20 unless given")
    add("--device", help="cpu, cuda...; a run's own unless given")
    add("--out", type=Path, help="folder of the table and page; judged/NAMES unless given; a run alone has its own")
    _add_loudness(sub)


def _add_loudness(sub: argparse.ArgumentParser) -> None:
    loudness = sub.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="no progress; errors, and what was asked for")
    loudness.add_argument("--json", action="store_true", help="progress and result as JSON lines on stdout")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        The exit status.
    """
    from . import __version__

    parser = _parser()
    args = parser.parse_args(arguments)
    args.command = ["pwoa", *(sys.argv[1:] if arguments is None else arguments)]
    try:
        done = int(args.run(args))
        sys.stdout.flush()  # here, where a reader that has gone away is dealt with
        return done
    except KeyboardInterrupt:
        return _fail(args, "stopped at once; what was done since the last saved state is lost", 130)
    except BrokenPipeError:  # `pwoa show | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("PWOA_DEBUG"):
            raise
        status = _status_of(error)
        if status is None:
            traceback.print_exc()
            sys.stderr.write(
                f"{args.prog}: this is a fault of pwoa-plugin {__version__}, not yours; please report it to its issue "
                "tracker, with the lines above\n"
            )
            return 70
        return _fail(args, str(error), status)


def _status_of(error: Exception) -> int | None:
    """2 for bad input, 1 for a run that cannot go on, None for anything else: a fault of ours."""
    import torch

    if isinstance(error, (TrainingError, RunError, torch.OutOfMemoryError)):
        return 1
    return 2 if isinstance(error, PwoAError) else None


def _fail(args: argparse.Namespace, message: str, status: int) -> int:
    sys.stderr.write(f"{args.prog}: error: {' '.join(message.split())}\n")
    return status


def _init(args: argparse.Namespace) -> int:
    from ._files import write_text

    if args.config.is_dir():
        raise FileError(f"{args.config}: is a folder; name a file in it")
    if args.config.exists() and not args.force:
        raise FileError(f"{args.config}: exists; give --force to replace it")
    write_text(args.config, (files(__package__) / "configs" / f"{args.preset}.yaml").read_text(encoding="utf-8"))
    sys.stdout.write(f"{args.config} is written; next: pwoa prune {shlex.quote(str(args.config))} --out runs/first\n")
    return 0


def _prune(args: argparse.Namespace) -> int:
    config = _config_of(args)
    console = _set_up_logging(args)
    from .runs.callbacks import Stopped
    from .runs.files import read_report
    from .runs.prune import prune
    from .runs.report import headline

    try:
        folder = prune(
            config,
            args.out,
            resume=args.resume,
            arch=args.arch,
            save_every=args.save_every,
            callbacks=_progress_of(args, console) if config.progress or args.json else [],
            command=args.command,
        )
    except Stopped as stopped:
        again = [argument for argument in args.command if argument != "--resume"]
        sys.stderr.write(f"stopped, and saved; go on with: {shlex.join([*again, '--resume'])}\n")
        return 128 + stopped.signal
    if args.json:
        sys.stdout.write(json.dumps({"event": "finished", "folder": str(folder), "report": str(folder.report)}) + "\n")
    elif not args.quiet:
        said = " ".join(headline(read_report(folder.path)))
        how = f"pwoa evaluate {shlex.quote(str(folder))}"
        if args.arch and ":" in args.arch:
            how += f" --arch {shlex.quote(args.arch)}"
        sys.stderr.write(f"{said}\nIts report is {folder.page}. How robust it is: {how}\n")
    return 0


def _config_of(args: argparse.Namespace) -> PwoAConfig:
    from ._yaml import YAMLError, parse_yaml
    from .config import ConfigError, PwoAConfig

    changes: list[tuple[str, Any]] = []
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {text}: give FIELD=VALUE, as admm.epochs=0")
        try:
            changes.append((name, parse_yaml(value)))
        except YAMLError as error:
            raise ConfigError(f"--set {text}: {error}") from None
    if args.seed is not None:
        changes.append(("seed", args.seed))
    if args.checkpoint is not None:
        changes.append(("model.checkpoint", args.checkpoint))
        if args.checkpoint.startswith("robustbench:"):  # network and weights in one
            changes += [(f"model.{name}", None) for name in ("arch", "num_classes", "mean", "std")]
    if args.arch is not None and ":" not in args.arch:
        changes.append(("model.arch", args.arch))
    return PwoAConfig.from_yaml(args.config, changes=dict(changes))


def _set_up_logging(args: argparse.Namespace) -> Console:
    """Log to stderr.

    Returns:
        The console of stderr, for progress bars: they and the log must share it.
    """
    import logging
    import warnings

    from rich.console import Console
    from rich.highlighter import NullHighlighter
    from rich.logging import RichHandler

    console = Console(stderr=True)
    if args.quiet:
        warnings.simplefilter("ignore")
    handler: logging.Handler = logging.StreamHandler()
    if console.is_terminal:
        handler = RichHandler(
            console=console, show_time=False, show_level=False, show_path=False, highlighter=NullHighlighter()
        )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s")
    logging.getLogger(__package__).setLevel(logging.ERROR if args.quiet else logging.INFO)
    return console


def _progress_of(args: argparse.Namespace, console: Console) -> list[Callback]:
    from .progress import JSONProgress, default_progress

    if args.quiet:
        return []
    return [JSONProgress(sys.stdout)] if args.json else [default_progress(console)]


def _evaluate(args: argparse.Namespace) -> int:
    if not Path(args.network).is_dir() or args.data is not None or args.out is not None:
        if args.dense:
            raise InputError("--dense goes with a run that is judged in its own folder; use `pwoa compare` for others")
        args.networks, args.protocol = [args.network], args.protocol or (None if args.attacks else "paper")
        return _compare(args)
    for name in ("mean", "std", "curve", "curve_attack", "image_size", "channels"):
        if getattr(args, name):
            raise InputError(f"--{name.replace('_', '-')} does not go with a run in its own folder; give --out as well")
    _set_up_logging(args)
    from .runs.evaluate import judge

    if len(args.arch) > 1:
        raise InputError(f"--arch {' '.join(args.arch)}: a run has one network; give one")
    reports = judge(
        args.network,
        eps=args.eps,
        protocol=args.protocol,
        norm=args.norm,
        attacks=args.attacks,
        images=args.sample,
        batch_size=args.batch_size,
        seed=args.seed,
        dense=args.dense,
        arch=args.arch[0] if args.arch else None,
        data_root=args.data_root,
        download=not args.no_download,
        device=args.device,
        progress=not args.quiet and not args.json,
    )
    for name, report in reports.items():
        if args.json:
            sys.stdout.write(json.dumps({"event": "judged", "network": name, **report.to_dict()}) + "\n")
        else:
            sys.stdout.write(f"{name}: {report}\n")
    return 0


def _compare(args: argparse.Namespace) -> int:
    if args.curve_attack and not args.curve:
        raise InputError(f"--curve-attack {args.curve_attack}: goes with --curve and its radii")
    _set_up_logging(args)
    from .runs.compare import default_out, judge_networks

    out = args.out or default_out(args.networks)
    folder, comparison = judge_networks(
        args.networks,
        out,
        arch=args.arch,
        data=args.data,
        data_root=args.data_root,
        download=not args.no_download,
        image_size=args.image_size,
        channels=args.channels,
        protocol=args.protocol,
        attacks=args.attacks,
        norm=args.norm,
        eps=args.eps,
        sample=args.sample,
        seed=args.seed,
        batch_size=args.batch_size,
        device=args.device,
        mean=args.mean,
        std=args.std,
        curve=args.curve,
        curve_attack=args.curve_attack or "PGD-20",
        progress=not args.quiet and not args.json,
    )
    if args.json:
        sys.stdout.write(json.dumps({"event": "compared", "folder": str(folder), **comparison.to_dict()}) + "\n")
        return 0
    sys.stdout.write(f"{comparison}\n")
    if not args.quiet:
        sys.stderr.write(f"The page is {folder.page}\n")
    return 0


def _show(args: argparse.Namespace) -> int:
    from .runs.files import read_report

    report = read_report(args.folder)
    if args.json:
        sys.stdout.write(json.dumps(report.to_dict(), indent=1) + "\n")
        return 0
    from rich.console import Console

    from .runs.rendering import show

    show(report, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
