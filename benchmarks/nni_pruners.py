"""NNI's own pruners on the shipped LeNet at 16x: alone, and with PwoADistiller; beside PwoAPruner.

    python -m benchmarks.nni_pruners --data DIR
    python -m benchmarks.nni_pruners --table

MNIST, 10,000 natural images of the training set, 12 epochs for every method, Adam 1e-3 falling to 0 by a cosine.
Every convolution and linear layer loses 15 weights in 16, one by one (granularity [1], the same ratio in each layer);
`pwoa-lamp` has the same total, spread by LAMP.
The standard AutoAttack on 200 test images judges. Each method has a JSON file in --out; one that exists is not run
again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from nni.compression.base.compressor import Compressor
from nni.compression.pruning import AGPPruner, LevelPruner, MovementPruner, TaylorPruner
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from pwoa_plugin import PwoADistiller, PwoAPruner, evaluate, make_evaluator
from pwoa_plugin._files import write_text
from pwoa_plugin._random import seeded
from pwoa_plugin._weights import is_weighted
from pwoa_plugin.models import robust_lenet

from .subjects import SUBJECTS, mnist_images

EPS = SUBJECTS["mnist"].eps
PRUNED = [{"op_types": ["Conv2d", "Linear"], "target_names": ["weight"], "sparse_ratio": 0.9375, "granularity": [1]}]
PRUNERS = ("agp-level", "movement", "agp-taylor")
PWOA = {"pwoa": "uniform", "pwoa-lamp": "lamp"}  # allocation
METHODS = (*PRUNERS, *(f"{pruner}+distiller" for pruner in PRUNERS), *PWOA)


def nni_pruner(name: str, model: nn.Module, evaluator: Any, steps: int) -> Compressor:
    """A pruner that reaches its target half way."""
    times = 10
    interval = steps // 2 // times
    if name == "movement":
        return MovementPruner(model, PRUNED, evaluator, warmup_step=interval, cooldown_begin_step=interval * times)
    if name == "agp-taylor":
        inner: Compressor = TaylorPruner(model, PRUNED, evaluator, training_steps=interval)
    else:
        inner = LevelPruner(model, PRUNED)
    return AGPPruner(inner, interval_steps=interval, total_times=times, evaluator=evaluator)


def prune(method: str, model: nn.Module, data: TensorDataset, epochs: int, options: dict[str, Any]) -> None:
    loader = DataLoader(data, batch_size=128, shuffle=True, drop_last=True)
    steps = epochs * len(loader)
    evaluator = make_evaluator(
        model,
        loader,
        torch.optim.Adam,
        1e-3,
        lr_scheduler=CosineAnnealingLR,
        lr_scheduler_options={"T_max": steps},
    )
    if method in PWOA:
        pruner = PwoAPruner(model, PRUNED, evaluator, eps=EPS, allocation=PWOA[method])
        pruner.compress(steps, None)
        pruner.unwrap_model()
        return
    name, _, distilled = method.partition("+")
    teacher = copy.deepcopy(model)
    pruner = nni_pruner(name, model, evaluator, steps)
    if distilled:
        distiller = PwoADistiller.from_compressor(pruner, [], teacher_model=teacher, eps=EPS, **options)
        distiller.compress(max_steps=steps)
        distiller.unwrap_model()
        return
    _, masks = pruner.compress(steps, None)
    pruner.unwrap_model()  # NNI's own leaves the masks out
    with torch.no_grad():
        for layer, targets in masks.items():
            model.get_submodule(layer).weight.mul_(targets["weight"])


def cell(args: argparse.Namespace, method: str) -> dict[str, Any]:
    x, y = mnist_images(args.data, train=True)
    data = TensorDataset(x[-args.images :], y[-args.images :])
    judge = mnist_images(args.data, train=False)
    model = robust_lenet().to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU
    result: dict[str, Any] = {"method": method, "epochs": args.epochs, "images": args.images, "seed": args.seed}
    result["options"] = args.options
    started = time.perf_counter()
    with seeded(args.seed):
        prune(method, model, data, args.epochs, args.options)
    result["prune_seconds"] = time.perf_counter() - started
    weights = [m.weight for m in model.modules() if is_weighted(m)]
    result["kept"] = sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
    report = evaluate(
        model,
        (judge[0][: args.judged], judge[1][: args.judged]),
        eps=EPS,
        attacks=["AutoAttack"],
        seed=args.seed,
        progress=not args.quiet,
    )
    attack = report.attacks["AutoAttack"]
    return result | {
        "judged": args.judged,
        "clean": report.clean,
        "AutoAttack": attack.accuracy,
        "interval": [attack.low, attack.high],
        "attack_seconds": attack.seconds,
    }


def table(results: list[dict[str, Any]]) -> str:
    """The cells as docs/results.md has them; a pruner alone and with the distiller in one row."""
    by_method = {result["method"]: result for result in results}

    def figures(method: str) -> str:
        if (result := by_method.get(method)) is None:
            return "not run | "
        low, high = result["interval"]
        return f"{result['clean']:.1%} | {result['AutoAttack']:.1%} ({low:.0%} to {high:.0%})"

    rows = ["| pruner | alone: clean | AutoAttack (95 %) | with PwoADistiller: clean | AutoAttack (95 %) |"]
    rows.append("| --- | --- | --- | --- | --- |")
    rows += [f"| {pruner} | {figures(pruner)} | {figures(pruner + '+distiller')} |" for pruner in PRUNERS]
    rows += [f"| PwoAPruner, {allocation} | {figures(name)} | | |" for name, allocation in PWOA.items()]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--images", type=int, default=10_000, help="natural images to prune with")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--judged", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON", help="PwoADistiller's")
    parser.add_argument("--name", default="default", help="of the settings, in the files' names")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--table", action="store_true", help="print the cells that are there, and run none")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.table:
        paths = sorted(args.out.glob(f"nni-{args.name}-*-16x-seed{args.seed}.json"))
        print(table([json.loads(path.read_text(encoding="utf-8")) for path in paths]))
        return
    for method in args.methods:
        path = args.out / f"nni-{args.name}-{method}-16x-seed{args.seed}.json"
        if not path.exists():
            write_text(path, json.dumps(cell(args, method), indent=1) + "\n")
        result = json.loads(path.read_text(encoding="utf-8"))
        print(
            f"{method}: kept {result['kept']:.4f} clean {result['clean']:.3f} AutoAttack {result['AutoAttack']:.3f} "
            f"({result['prune_seconds']:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
