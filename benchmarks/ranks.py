"""A run in one process beside the same in two, of equal total batch: how robust, how fast.

    python -m benchmarks.ranks --data DIR

The shipped LeNet at 16x on 10,000 images of MNIST, 6 epochs, batches of 128 in all, gloo on one machine, three seeds.
PGD-40 on 500 test images. With `--network norm` the LeNet has a BatchNorm after each convolution, made so that it
computes the same as before. Each cell has a JSON file in --out; one that exists is not run again.

Variants: ``one`` process; ``two`` as the package does it (each process's own batch for HSIC and BatchNorm, rank 0's
running statistics); ``gathered``: HSIC over the images of both; ``averaged``: the mean of both running statistics. One
process is what SyncBatchNorm computes: the statistics of the whole batch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pwoa_plugin import PwoAConfig, PwoAPruner, _ranks, evaluate
from pwoa_plugin._digest import digest_of_tensors
from pwoa_plugin._files import write_text
from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.models import robust_lenet

from .subjects import SUBJECTS, mnist_images

EPS = SUBJECTS["mnist"].eps
VARIANTS = ("one", "two", "gathered", "averaged")


def with_norm(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """A BatchNorm after each convolution, whose parameters undo its statistics."""
    for name in ("conv1", "conv2"):
        convolution = model.get_submodule(name)
        norm = nn.BatchNorm2d(convolution.out_channels, momentum=None)
        setattr(model, name, nn.Sequential(convolution, norm))
        with torch.no_grad():
            model.train()(images)
            norm.weight.copy_((norm.running_var + norm.eps).sqrt())
            norm.bias.copy_(norm.running_mean)
        norm.momentum = 0.1
    return model.eval()


class Average(Callback):
    """Give both processes the mean of their running statistics."""

    def __init__(self, model: nn.Module) -> None:
        self.norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]

    def on_step(self, status: Status) -> None:
        for norm in self.norms:
            for name in ("running_mean", "running_var"):
                found = _ranks.gathered(norm.get_buffer(name))
                norm.get_buffer(name).copy_(sum(found) / len(found))


def cell(args: argparse.Namespace, path: Path) -> None:
    x, y = mnist_images(args.data, train=True)
    model: Any = robust_lenet()
    if args.network == "norm":
        model = with_norm(model, x[:2000])
    config = PwoAConfig(
        sparsity=0.9375,
        train_loader=(x[-args.images :], y[-args.images :]),
        batch_size=128,
        epochs=args.epochs,
        eps=EPS,
        seed=args.seed,
        hsic={"gather": args.variant == "gathered"},
        progress=False,
    )
    callbacks = [Average(model)] if args.variant == "averaged" else []
    pruner = PwoAPruner(model, config, callbacks=callbacks)
    started = time.perf_counter()
    _, masks = pruner.compress()
    seconds = time.perf_counter() - started
    digests = _ranks.gathered(digest_of_tensors(**{name: mask["weight"] for name, mask in masks.items()}))
    weights = _ranks.gathered(digest_of_tensors(**model.state_dict()))
    if not _ranks.is_main():
        return
    layers = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    test, labels = mnist_images(args.data, train=False)
    judged = (test[: args.judged], labels[: args.judged])
    report = evaluate(model, judged, eps=EPS, attacks=["PGD-40"], progress=False)
    result = {
        "variant": args.variant,
        "network": args.network,
        "seed": args.seed,
        "processes": _ranks.size(),
        "images": args.images,
        "epochs": args.epochs,
        "seconds": seconds,
        "masks_equal": len(set(digests)) == 1,
        "weights_equal": len(set(weights)) == 1,
        "kept": sum(int(weight.count_nonzero()) for weight in layers) / sum(weight.numel() for weight in layers),
        "terms": {name: value for name, value in pruner.history[-1].items() if name.startswith("hsic")},
        "clean": report.clean,
        "PGD-40": report.attacks["PGD-40"].accuracy,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ranks"))
    parser.add_argument("--network", choices=("lenet", "norm"), default="lenet")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["one", "two", "gathered"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--judged", type=int, default=500)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)  # one cell, in its own processes
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        cell(args, args.out / f"{args.network}-{args.variant}-seed{args.seed}.json")
        return
    for seed in args.seeds:
        for variant in args.variants:
            path = args.out / f"{args.network}-{variant}-seed{seed}.json"
            if not path.exists():
                processes = [] if variant == "one" else ["torch.distributed.run", "--nproc-per-node", "2", "-m"]
                command = [sys.executable, "-m", *processes, "benchmarks.ranks", *sys.argv[1:]]
                subprocess.run([*command, "--variant", variant, "--seed", str(seed)], check=True)


if __name__ == "__main__":
    main()
