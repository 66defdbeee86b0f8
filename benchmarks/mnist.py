"""How much of the shipped LeNet's robustness is left on MNIST, by compression.

    python -m benchmarks.mnist --data DIR --compression 1 4 16 33

20,000 natural images of MNIST's training set to prune with (the last ones; the shipped LeNet's training saw them
too), AutoAttack (standard) and PGD-40 on 500 test images. One JSON file per cell in --out, and a cell
that is there is not run again. `--validate` judges by training images that are not pruned with, for choosing
settings: they flatter the level, since the LeNet has seen them, and serve to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import MNIST

from pwoa_plugin import PwoAConfig, PwoAPruner, evaluate
from pwoa_plugin.method.layers import is_weighted
from pwoa_plugin.models import robust_lenet

EPS = 0.3


def images_of(root: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    data = MNIST(root, train=train, download=True)
    return data.data.unsqueeze(1).float() / 255, data.targets


def parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def cell(args: argparse.Namespace, compression: float, fields: dict[str, Any]) -> dict[str, Any]:
    x, y = images_of(args.data, train=True)
    natural = (x[-args.images :], y[-args.images :])
    judge = images_of(args.data, train=False) if not args.validate else (x[10_000:11_000], y[10_000:11_000])
    judge = (judge[0][: args.judged], judge[1][: args.judged])
    model = robust_lenet().to(memory_format=torch.channels_last)  # AutoAttack runs 1.5 times as fast
    result: dict[str, Any] = {"compression": compression, "fields": fields, "images": args.images, "seed": args.seed}
    if compression > 1:
        values = {"sparsity": 1 - 1 / compression, "train_loader": natural, "eps": EPS, "epochs": args.epochs}
        values |= {"seed": args.seed, "progress": not args.quiet} | fields
        config = PwoAConfig(**values)
        started = time.perf_counter()
        pruner = PwoAPruner(model, config)
        pruner.compress()
        result |= {"prune_seconds": time.perf_counter() - started, "residual": pruner.residual}
        result |= {"config": config.model_dump(mode="json"), "loss": pruner.history[-1]}
    weights = [m.weight for m in model.modules() if is_weighted(m)]
    result["kept"] = sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
    report = evaluate(model, judge, eps=EPS, attacks=args.attacks, seed=args.seed, progress=not args.quiet)
    result |= {"clean": report.clean, "judged": len(judge[0]), "validation": args.validate}
    result |= {name: attack.accuracy for name, attack in report.attacks.items()}
    result |= {"seconds": {name: attack.seconds for name, attack in report.attacks.items()}}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--compression", type=float, nargs="+", default=[1, 4, 16, 33])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--judged", type=int, default=500)
    parser.add_argument("--attacks", nargs="+", default=["PGD-40", "AutoAttack"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=JSON", help='config fields, as admm={"epochs":0}'
    )
    parser.add_argument("--name", default="default", help="of the settings, in the files' names")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    fields = {name: parse_value(value) for name, value in (pair.split("=", 1) for pair in args.set)}
    args.out.mkdir(parents=True, exist_ok=True)
    dense: float | None = None
    for compression in args.compression:
        path = args.out / f"mnist-{args.name}-{compression:g}x-seed{args.seed}.json"
        if not path.exists():
            result = cell(args, compression, fields)
            partial = path.with_suffix(".tmp")
            partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            os.replace(partial, path)
        result = json.loads(path.read_text(encoding="utf-8"))
        last = args.attacks[-1]
        dense = result[last] if compression == 1 else dense
        share = f" ({result[last] / dense:.1%} of dense)" if dense else ""
        figures = " ".join(f"{name} {result[name]:.3f}" for name in ("clean", *args.attacks))
        print(f"{args.name} {compression:g}x: {figures}{share}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()
