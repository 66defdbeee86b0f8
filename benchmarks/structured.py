"""What is left of the shipped LeNet's robustness, on MNIST, when channels are removed; and how much faster it gets.

    python -m benchmarks.structured removal --data DIR    # accuracy right at removal, before any fine-tuning
    python -m benchmarks.structured tuned --data DIR      # AutoAttack after equal fine-tuning, by pruner and loss
    python -m benchmarks.structured tuned --table         # these cells as a table
    python -m benchmarks.structured pgd --data DIR        # the same by PGD-40, in minutes
    python -m benchmarks.structured latency               # CIFAR ResNet-18 at 75 %, paired runs on the CPU

Each cell has a JSON file in --out; one that exists is not run again. `pwoa` is `PwoAGroupPruner.compress`;
`group-norm` and `growing-reg` are Torch-Pruning's pruners: their regularisation for as many epochs as ADMM has, then
removal at the same ratio and as many epochs of fine-tuning, by the same optimizer and schedule, with cross-entropy
(`ce`) or with our loss (`ours`). `pwoa-lamp` and `pwoa-sensitivity` spread the channels by LAMP, or by how much the
loss on perturbed images grows as a layer alone loses its smallest channels.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.subjects import SUBJECTS, Pair
from benchmarks.tried import Measured, sensitivity
from pwoa_plugin import PwoAConfig, evaluate
from pwoa_plugin._files import write_text
from pwoa_plugin._random import seeded
from pwoa_plugin.method.allocation import ALLOCATIONS, Allocation, LayerGroups
from pwoa_plugin.method.loss import PwoALoss
from pwoa_plugin.method.optimizers import lr_factor
from pwoa_plugin.models import make_model, robust_lenet
from pwoa_plugin.runs.cost import cost_report
from pwoa_plugin.torch_pruning import PwoAGroupPruner

RATIOS = (0.5, 0.75, 0.9)
MNIST = SUBJECTS["mnist"]
EPS = MNIST.eps
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def accuracy(model: nn.Module, data: Pair) -> float:
    with torch.no_grad():
        model.eval()
        answers = torch.cat([model(x).argmax(1) for x in data[0].split(500)])
    return float((answers == data[1]).float().mean())


def config_of(args: argparse.Namespace, data: Pair, ratio: float, **fields: Any) -> PwoAConfig:
    values = {"sparsity": ratio, "granularity": "structured", "train_loader": data, "eps": EPS, "seed": args.seed}
    values |= {"epochs": args.epochs, "progress": False, "optimizer": {"name": "adam", "lr": args.lr}}
    return PwoAConfig(**(values | fields))


def removal(args: argparse.Namespace, ratio: float, method: str) -> dict[str, Any]:
    """Accuracy on the test images as the last channel goes: nothing is trained after."""
    data, judge = training(args), judging(args)
    model = robust_lenet()
    residual = None
    if method == "admm":
        admm = {"epochs": args.epochs, "hsic": True}
        config = config_of(args, data, ratio, admm=admm, schedule={"name": "constant"})
        pruner = PwoAGroupPruner(model, config=config)
        pruner.compress()
        residual = pruner.residual
    elif method == "trained":  # as long, by the same loss, without ADMM: what training alone does for removal
        config = config_of(args, data, ratio)
        train(model, ours(model, config), data, args, args.epochs, args.epochs, constant=True)
        PwoAGroupPruner(model, data[0][:2], pruning_ratio=ratio).step()
    else:
        PwoAGroupPruner(model, data[0][:2], pruning_ratio=ratio).step()
    return {"accuracy": accuracy(model, judge), "judged": len(judge[0]), "residual": residual, **widths(model)}


class Sensitivity(Allocation):
    """`benchmarks.tried.Measured`, by the loss as a layer of the dense network loses channels."""

    def __init__(self, dense: nn.Module, images: Tensor) -> None:
        curves = sensitivity(dense.eval(), images, 1.5 * EPS, channels=True)
        self.curves = {dense.get_parameter(f"{name}.weight").shape: curve for name, curve in curves.items()}

    def ideal(self, layers: Sequence[LayerGroups], budget: float) -> list[float]:
        return Measured([self.curves[torch.Size(layer.shape)] for layer in layers]).ideal(layers, budget)


def tuned(args: argparse.Namespace, ratio: float, method: str, attack: str = "AutoAttack") -> dict[str, Any]:
    """Robust accuracy after equal training."""
    data, dense = training(args), robust_lenet()
    x, y = judging(args)
    model = robust_lenet()
    started = time.perf_counter()
    if method == "pwoa-sensitivity":
        ALLOCATIONS["sensitivity"] = Sensitivity(dense, data[0][:512])
    _, _, allocation = method.partition("pwoa-")
    config = config_of(args, data, ratio or 0.5, **({"allocation": allocation} if allocation else {}))
    if method.startswith("pwoa"):
        PwoAGroupPruner(model, config=config).compress()
    elif method != "dense":
        kind, _, loss = method.rpartition("-")
        baseline(model, kind, ours(model, config) if loss == "ours" else cross_entropy, data, args, ratio)
    seconds = time.perf_counter() - started
    model.eval()
    cost = cost_report(dense, model, x[:1])
    report = evaluate(
        model, (x[: args.judged], y[: args.judged]), eps=EPS, attacks=[attack], seed=args.seed, progress=False
    )
    result = {"clean": report.clean, attack: report.attacks[attack].accuracy, "judged": args.judged}
    result |= {"prune_seconds": seconds, "parameters": cost.pruned.parameters, "macs": cost.pruned.macs}
    return result | {"latency_ms": cost.pruned.latency_ms, "speedup": cost.speedup, **widths(model)}


def training(args: argparse.Namespace) -> Pair:
    x, y = MNIST.training(args.data)
    return x[-args.images :], y[-args.images :]


def judging(args: argparse.Namespace) -> Pair:
    return MNIST.validation(args.data) if args.validate else MNIST.test(args.data)


def widths(model: nn.Module) -> dict[str, Any]:
    layers = {name: len(module.weight) for name, module in model.named_modules() if hasattr(module, "weight")}
    return {"filters": layers, "threads": torch.get_num_threads()}


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def ours(model: nn.Module, config: PwoAConfig) -> PwoALoss:
    """The loss of `compress`."""
    return PwoALoss(
        model,
        distillation=config.distillation,
        perturbation=config.perturbation,
        hsic=config.hsic,
        eps=config.eps,
        pixel_range=config.pixel_range,
    )


def baseline(model: nn.Module, kind: str, loss: Loss, data: Pair, args: argparse.Namespace, ratio: float) -> None:
    """One of Torch-Pruning's pruners, with its own defaults."""
    make = {"group-norm": tp.pruner.GroupNormPruner, "growing-reg": tp.pruner.GrowingRegPruner}[kind]
    pruner = make(
        model,
        data[0][:2],
        tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=ratio,
        ignored_layers=[model.fc2],
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )
    sparse = max(args.epochs // 4, 1)
    with seeded(args.seed):
        train(model, loss, data, args, 0, sparse, pruner=pruner)
        pruner.step()
        train(model, loss, data, args, sparse, args.epochs)


def train(
    model: nn.Module,
    loss: Loss,
    data: Pair,
    args: argparse.Namespace,
    first: int,
    last: int,
    *,
    pruner: Any = None,
    constant: bool = False,
) -> None:
    """Epochs ``first`` to ``last`` of a run, with the run's optimizer and its schedule over all of it."""
    if constant:
        first = 0
    config = config_of(args, data, 0.5)
    per_epoch = -(-len(data[0]) // config.batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optimizer.lr)
    for group in optimizer.param_groups:
        group["initial_lr"] = config.optimizer.lr
    schedule = partial(lr_factor, config.schedule, args.epochs * per_epoch, per_epoch)
    scheduler = LambdaLR(optimizer, (lambda _: 1.0) if constant else schedule, last_epoch=first * per_epoch - 1)
    model.train()
    if pruner is not None:
        pruner.update_regularizer()
    for _ in range(first, last):
        for index in torch.randperm(len(data[0])).split(config.batch_size):
            optimizer.zero_grad()
            loss(model, data[0][index], data[1][index]).backward()
            if pruner is not None:
                pruner.regularize(model)
            optimizer.step()
            scheduler.step()
        if pruner is not None and hasattr(pruner, "update_reg"):
            pruner.update_reg()


def latency(args: argparse.Namespace, ratio: float, method: str) -> dict[str, Any]:
    """CIFAR's ResNet-18; weights do not matter here."""
    torch.manual_seed(args.seed)
    dense = make_model("resnet18-cifar", num_classes=10, in_channels=3)
    model = make_model("resnet18-cifar", num_classes=10, in_channels=3)
    image = torch.rand(1, 3, 32, 32)
    PwoAGroupPruner(model, image, pruning_ratio=ratio).step()
    cost = cost_report(dense, model, image)
    found = {"dense": vars(cost.dense), "pruned": vars(cost.pruned), "speedup": cost.speedup}
    return {**found, "threads": cost.threads}


TUNED = [
    (0.0, "dense"),
    *[
        (ratio, method)
        for ratio in (0.75, 0.5, 0.9)
        for method in ("pwoa", "group-norm-ours", "group-norm-ce", "growing-reg-ours", "growing-reg-ce")
    ],
    *[(ratio, method) for ratio in (0.75, 0.9) for method in ("pwoa-lamp", "pwoa-sensitivity")],
]
CELLS: dict[str, tuple[Callable[[argparse.Namespace, float, str], dict[str, Any]], list[tuple[float, str]]]] = {
    "removal": (removal, [(ratio, method) for ratio in RATIOS for method in ("admm", "trained", "plain")]),
    "tuned": (tuned, TUNED),
    "pgd": (partial(tuned, attack="PGD-40"), TUNED),
    "latency": (latency, [(0.75, "resnet18-cifar")]),
}


NAMES = {
    "dense": "dense",
    "pwoa": "`PwoAGroupPruner`",
    "pwoa-lamp": "`PwoAGroupPruner`, LAMP",
    "pwoa-sensitivity": "`PwoAGroupPruner`, by measured sensitivity",
    "group-norm-ours": "`GroupNormPruner`, ours",
    "group-norm-ce": "`GroupNormPruner`, ce",
    "growing-reg-ours": "`GrowingRegPruner`, ours",
    "growing-reg-ce": "`GrowingRegPruner`, ce",
}


def table(out: Path, seed: int) -> str:
    """The cells of ``tuned`` as docs/torch_pruning.md has them."""
    rows = [
        "| channels removed | method | clean | AutoAttack | batch 1 | batch 128 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for ratio, method in sorted(TUNED, key=lambda cell: cell[0]):
        path = out / f"structured-tuned-{method}-{100 * ratio:g}-seed{seed}.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            faster = [f"{found['speedup'][batch]:.1f}x" if ratio else "" for batch in ("1", "128")]
            head = [f"{ratio:.0%}" if ratio else "", NAMES[method]]
            rows.append(
                " | ".join(["| " + head[0], head[1], f"{found['clean']:.1%}", f"{found['AutoAttack']:.1%}", *faster])
                + " |"
            )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=CELLS)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--lr", type=float, default=3e-3, help="of Adam, for every method")
    parser.add_argument("--judged", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ratios", type=float, nargs="+", default=(0.0, *RATIOS), help="of these cells only")
    parser.add_argument("--methods", nargs="+", help="of these cells only")
    parser.add_argument("--validate", action="store_true", help="judge by images cut from the training set")
    parser.add_argument("--name", default="", help="of cells with other settings, in the files' names")
    parser.add_argument("--table", action="store_true", help="print the cells of `tuned` that are there, and run none")
    parser.add_argument("--most", type=int, default=1000, help="cells to make in this call")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.table:
        print(table(args.out, args.seed))
        return
    run, cells = CELLS[args.what]
    name = f"{args.what}{args.name and '-' + args.name}{'-validation' * args.validate}"
    for ratio, method in cells:
        if ratio not in args.ratios or (args.methods and method not in args.methods):
            continue
        path = args.out / f"structured-{name}-{method}-{100 * ratio:g}-seed{args.seed}.json"
        if not path.exists():
            if args.most == 0:
                break
            args.most -= 1
            given = {"ratio": ratio, "method": method, "seed": args.seed}
            given |= {} if args.what == "latency" else {"epochs": args.epochs, "images": args.images, "lr": args.lr}
            write_text(path, json.dumps(given | run(args, ratio, method), indent=1) + "\n")
        found = json.loads(path.read_text(encoding="utf-8"))
        shown = {
            key: found[key]
            for key in ("accuracy", "residual", "clean", "PGD-40", "AutoAttack", "speedup")
            if key in found
        }
        print(f"{args.what} {method} {ratio:.0%}: {shown}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    main()
