"""Peak memory and time of two steps of large networks, with and without activation checkpointing.

    python -m benchmarks.memory
    python -m benchmarks.memory --networks resnet18 --batch 64 --steps 4 --out DIR    # time beside processes

ResNet-50 and ViT-B/16 (torchvision's, random weights) on random images of 224 x 224, and ResNet-18 of CIFAR's size; a
batch of 16 in all, one and two processes (gloo), a step of ADMM and one of fine-tuning. Memory is the largest resident
set of a process less that of a process which has only imported the package. Each cell has a JSON file in --out.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from pwoa_plugin import PwoAConfig, PwoAPruner, _ranks
from pwoa_plugin._files import write_text
from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.models.make import make_model

NETWORKS: dict[str, int] = {"resnet18": 32, "resnet50": 224, "vit_b_16": 224}
CLASSES = {"resnet18": 10, "resnet50": 1000, "vit_b_16": 1000}


def network(name: str) -> nn.Module:
    if name == "resnet18":
        return make_model("resnet18-cifar", num_classes=10)
    return torchvision.models.get_model(name, weights=None)


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock(Callback):
    def __init__(self) -> None:
        self.steps: list[float] = []
        self._last = 0.0

    def on_start(self, status: Status) -> None:
        self._last = time.perf_counter()

    def on_step(self, status: Status) -> None:
        now = time.perf_counter()
        self.steps.append(now - self._last)
        self._last = now


def cell(args: argparse.Namespace, path: Path) -> None:
    before = peak()
    torch.manual_seed(0)
    side = NETWORKS[args.network]
    model = network(args.network).eval()
    count = args.batch * args.steps
    images = torch.rand(count, 3, side, side), torch.randint(CLASSES[args.network], (count,))
    config = PwoAConfig(
        sparsity=0.9,
        train_loader=images,
        batch_size=args.batch,
        epochs=2,
        admm={"epochs": 1},
        gradual={"epochs": 0},
        eps=4 / 255,
        accumulate=args.accumulate,
        checkpoint=args.checkpoint,
        progress=False,
    )
    clock = Clock()
    PwoAPruner(model, config, callbacks=[clock]).compress()
    found = _ranks.gathered((peak() - before, clock.steps))
    if not _ranks.is_main():
        return
    result: dict[str, Any] = {
        "network": args.network,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "processes": _ranks.size(),
        "batch": args.batch,
        "checkpoint": args.checkpoint,
        "accumulate": args.accumulate,
        "peak_mib": [round(each) for each, _ in found],
        "step_seconds": [[round(step, 2) for step in steps] for _, steps in found],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/memory"))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1, help="of each phase")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--network", help=argparse.SUPPRESS)  # one cell, in its own processes
    parser.add_argument("--checkpoint", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in [args.network] if args.network else args.networks:
        for processes in [_ranks.size()] if args.network else args.processes:
            for checkpoint in [args.checkpoint] if args.network else [False, True]:
                parts = f"-in-{args.accumulate}" if args.accumulate > 1 else ""
                kind = ("-checkpoint" if checkpoint else "") + parts
                path = args.out / f"{name}-{processes}{kind}.json"
                if args.network:
                    cell(args, path)
                elif not path.exists():
                    several = ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"]
                    command = [sys.executable, "-m", *(several if processes > 1 else []), "benchmarks.memory"]
                    options = [*sys.argv[1:], "--network", name, *(["--checkpoint"] if checkpoint else [])]
                    subprocess.run([*command, *options], check=True)


if __name__ == "__main__":
    main()
