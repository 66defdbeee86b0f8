"""All that the study wants of a GPU, in one command that can be stopped and called again.

    python -m benchmarks.gpu --data DIR --out DIR [--jobs 4] [--minutes 240]
    python -m benchmarks.gpu --data DIR --out DIR --small --device cpu

In order: the steps' times, compiled and not (`benchmarks.speed`); the dense CIFAR-10 ResNet-18, if it is not trained
(`benchmarks.train_cifar`); its cells at 10x, 20x and 100x with AutoAttack on 1,000 images, ``--jobs`` at once
(`benchmarks.robustness`); the tests that ask for a GPU; 2:4 kernels (`benchmarks.semi_structured`); the table.

A part whose file is there is not run again, and ``--plan`` says which are left. After ``--minutes`` nothing begins, and
what runs is stopped. ``--small`` tries every part in minutes on a CPU: the study's own small network, one epoch of 256
images, AutoAttack on 8.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.subjects import CIFAR_JPEG, SUBJECTS
from benchmarks.tables import read, table

ROOT = Path(__file__).parents[1]
EPOCHS = 30  # of the dense network
ADAM = 'optimizer={"lr":0.001}'
ALONE = ('distillation={"alpha":0,"feature_weight":0}', 'hsic={"lambda_x":0,"lambda_y":0}')
# (method, name of the cell, options)
CELLS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("dense", "dense", ()),
    ("default", "shares-quarter-lr-0.001", ("--set", ADAM)),
    ("default", "gradients-1-lr-0.001", ("--set", 'distillation={"gradient_weight":1}', ADAM)),
    ("n-fgsm", "n-fgsm", ()),
    ("default", "ours-n-fgsm", ("--set", "adversarial={}", ADAM)),
    ("default", "n-fgsm-teacher-alone", ("--set", 'adversarial={"classes":"teacher"}', *ALONE, ADAM)),
    ("adversarial", "adversarial", ()),
)
FEW = ("--train", "256", "--epochs", "1", "--images", "16")


@dataclass(frozen=True)
class Part:
    """A command, as arguments of ``python -m``, and the file that is there once it is done.

    Attributes:
        is_log: whether that file is the command's output; otherwise the command writes it.
        epochs: of a training, whose checkpoint is there after the first of them.
    """

    what: str
    arguments: tuple[str, ...]
    file: Path
    is_log: bool = True
    epochs: int = 0

    @property
    def command(self) -> str:
        """As a shell takes it."""
        return shlex.join(("python", "-m", *self.arguments))

    @property
    def done(self) -> bool:
        history = self.file.with_suffix(".json")
        if self.epochs and self.file.exists() and history.exists():
            return len(json.loads(history.read_text(encoding="utf-8"))) >= self.epochs
        return self.file.exists()


@dataclass(frozen=True)
class Stage:
    """Parts that may run beside each other, so many at once; ``needed`` by what comes after."""

    parts: tuple[Part, ...]
    at_once: int = 1
    needed: bool = False


def gpu_tests() -> list[str]:
    """The tests that are skipped without a GPU, as pytest names them."""
    asks = re.compile(r"^@pytest\.mark\.skipif\(not torch\.cuda\.is_available\(\).*\n(?:@.*\n)*def (test_\w+)", re.M)
    return [
        f"{path.relative_to(ROOT)}::{name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for name in asks.findall(path.read_text(encoding="utf-8"))
    ]


def plan(data: Path, out: Path, *, device: str = "cuda", jobs: int = 4, small: bool = False) -> list[Stage]:
    """What there is to run, done or not."""
    on = ("--device", device)
    with_data = ("--data", str(out / "data" if small else data), *on)
    subject = "cifar10" if small else "cifar10-resnet18"
    few_steps = ("--kinds", "quarter", "--no-memory") if small else ("--pairs", "80")
    times = tuple(
        Part(
            f"steps of {network}",
            ("benchmarks.speed", "--networks", network, "--compile", *few_steps, *on),
            out / f"speed-{network}.log",
        )
        for network in (("lenet",) if small else ("lenet", "lenet3", "cifar10", "resnet18-cifar"))
    )
    checkpoint, epochs = (out / "dense.safetensors", 1) if small else (Path(SUBJECTS[subject].checkpoint), EPOCHS)
    training = ("benchmarks.train_cifar", subject, "--epochs", str(epochs), "--out", str(checkpoint), *with_data)
    cells = tuple(
        Part(
            f"{name} at {compression}x",
            (
                *("benchmarks.robustness", subject, "--methods", method, "--compression", str(compression)),
                *("--name", name, *options, *(FEW if small else ()), "--deep", "8" if small else "1000"),
                *("--out", str(out / "cells"), *with_data),
            ),
            out / "cells" / f"{subject}-{name}-{compression}x-seed0.json",
            is_log=False,
        )
        for method, name, options in CELLS
        for compression in ((1,) if method == "dense" else (10,) if small else (10, 20, 100))
    )
    networks = ("--networks", "resnet50") if small else ()
    checks = (
        Part("the tests that ask for a GPU", ("pytest", "-n", "0", "-rs", *gpu_tests()), out / "tests.log"),
        Part("2:4 kernels", ("benchmarks.semi_structured", *networks, *on), out / "semi-structured.log"),
    )
    return [
        Stage(times),
        Stage((Part("the dense network", training, checkpoint, is_log=False, epochs=epochs),), needed=True),
        Stage(cells, at_once=jobs),
        Stage(checks),
    ]


def run(part: Part, logs: Path, deadline: float) -> bool:
    """Run a part unless it is done or time is up; whether it is done."""
    if part.done:
        return True
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    print(f"{left / 60:.0f} min left: {part.what}: {part.command}", flush=True)
    log = logs / f"{part.what.replace(' ', '-')}.log"
    with log.open("w", encoding="utf-8") as output:
        command = [sys.executable, "-m", *part.arguments]
        try:
            status = subprocess.run(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, timeout=left, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            print(f"{part.what}: stopped, time is up; call this again")
            return False
    if status:
        print(f"{part.what}: failed, see {log}", flush=True)
    elif part.is_log:
        os.replace(log, part.file)
    return part.done


def small_copy(data: Path, folder: Path) -> None:
    """The first images of the JPEG copy, so that reading them takes no time."""
    folder.mkdir(parents=True, exist_ok=True)
    cut = {}
    with np.load(data / CIFAR_JPEG) as whole:
        for split, images in (("train", 2000), ("test", 200)):
            offsets = whole[f"{split}_offsets"][: images + 1]
            cut[f"{split}_jpeg"] = whole[f"{split}_jpeg"][: offsets[-1]]
            cut[f"{split}_offsets"], cut[f"{split}_labels"] = offsets, whole[f"{split}_labels"][:images]
    np.savez(folder / CIFAR_JPEG, **cut)


def show(stages: Sequence[Stage]) -> None:
    for stage in stages:
        for part in stage.parts:
            print(f"{'done' if part.done else 'to do'}: {part.what}: {part.command}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="where torchvision has its files, or puts them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--jobs", type=int, default=4, help="cells at once")
    parser.add_argument("--minutes", type=float, default=240)
    parser.add_argument("--small", action="store_true", help="try every part at small size; needs the JPEG copy")
    parser.add_argument("--plan", action="store_true", help="say what is left, and run nothing")
    args = parser.parse_args()
    data, out = args.data.resolve(), args.out.resolve()
    deadline = time.monotonic() + 60 * args.minutes
    stages = plan(data, out, device=args.device, jobs=args.jobs, small=args.small)
    show(stages)
    if args.plan:
        return
    (logs := out / "logs").mkdir(parents=True, exist_ok=True)
    if args.small and not (out / "data" / CIFAR_JPEG).exists():
        small_copy(data, out / "data")
    failed = False
    for stage in stages:
        with ThreadPoolExecutor(stage.at_once) as pool:
            done = all(list(pool.map(lambda part: run(part, logs, deadline), stage.parts)))
        failed = failed or not done
        if stage.needed and not done:
            break
    if cells := read(out / "cells", "cifar10" if args.small else "cifar10-resnet18", "test"):
        (out / "table.md").write_text(table(cells) + "\n", encoding="utf-8")
        print(table(cells))
    if failed:
        raise SystemExit("not all is done; call this again")


if __name__ == "__main__":
    main()
