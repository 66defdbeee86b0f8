"""How much robustness is lost when the pruned LeNet is quantized to 8 bits by NNI.

    python -m benchmarks.quantized --data DIR

The shipped LeNet is pruned 8x on MNIST (natural images), then quantized by NNI's QATQuantizer, which trains on with
PwoA's loss, and by its PtqQuantizer, which only calibrates on images. Weights, inputs and outputs of each convolution
and linear layer have 8 bits. PGD-20 on 1,000 test images before and after, with gradients straight through the
rounding. One JSON file in --out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nni
import torch
from nni.compression import TorchEvaluator
from nni.compression.quantization import PtqQuantizer, QATQuantizer
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.subjects import SUBJECTS, mnist_images
from pwoa_plugin import PwoAConfig, PwoAPruner, evaluate
from pwoa_plugin._files import write_text
from pwoa_plugin.masks import Masks
from pwoa_plugin.models import robust_lenet

EPS = SUBJECTS["mnist"].eps
LAYERS = ["Conv2d", "Linear"]
QUANTIZED = [
    {
        "op_types": LAYERS,
        "target_names": ["_input_", "weight", "_output_"],
        "quant_dtype": "int8",
        "quant_scheme": "affine",
    }
]


def evaluator_of(model: nn.Module, images: tuple[Tensor, Tensor], lr: float) -> TorchEvaluator:
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images), 128, shuffle=True, drop_last=True)

    def training_step(batch: Any, model: nn.Module) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def train(
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: Callable[[Any, nn.Module], Tensor],
        scheduler: Any,
        max_steps: int | None,
        max_epochs: int | None,
    ) -> None:
        model.train()
        done = 0
        while done < (max_steps or 0):
            for batch in batches:
                optimizer.zero_grad()
                step(batch, model).backward()
                optimizer.step()
                done += 1
                if done == max_steps:
                    return

    @torch.no_grad()
    def calibrate(model: nn.Module) -> float:
        model.eval()
        for x in images[0][:2000].split(500):
            model(x)
        return 0.0

    optimizer = nni.trace(torch.optim.Adam)(model.parameters(), lr=lr)
    return TorchEvaluator(train, optimizer, training_step, evaluating_func=calibrate)


def judged(model: nn.Module, images: tuple[Tensor, Tensor], seed: int) -> dict[str, float]:
    model.eval()
    report = evaluate(model, images, eps=EPS, attacks=["PGD-20"], seed=seed, progress=False)
    return {"clean": report.clean, "PGD-20": report.attacks["PGD-20"].accuracy}


def quantized(
    kind: str, weights: dict[str, Tensor], masks: Masks, images: tuple[Tensor, Tensor], args: argparse.Namespace
) -> tuple[nn.Module, float]:
    """The pruned network under the quantizer, and the share of zeros among the weights that its forward uses."""
    model = robust_lenet()
    model.load_state_dict(weights)
    entries = [{"op_types": LAYERS, "sparse_ratio": 1 - 1 / args.compression}]
    evaluator = evaluator_of(model, images, args.lr)
    pruner = PwoAPruner(model, entries, evaluator, eps=EPS, teacher_model=robust_lenet())
    pruner.update_masks(masks)
    if kind == "QAT":
        quantizer = QATQuantizer.from_compressor(pruner, QUANTIZED, quant_start_step=args.steps // 4)
        quantizer.compress(args.steps, None)
    else:
        quantizer = PtqQuantizer.from_compressor(pruner, QUANTIZED)
        quantizer.compress(1, None)
    model.eval()
    with torch.no_grad():
        model(images[0][:2])
    used = [model.get_submodule(name).weight for name in masks]
    return model, sum(int((w == 0).sum()) for w in used) / sum(w.numel() for w in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--compression", type=float, default=8)
    parser.add_argument("--epochs", type=int, default=4, help="of the pruning")
    parser.add_argument("--steps", type=int, default=100, help="of QAT")
    parser.add_argument("--lr", type=float, default=1e-4, help="of QAT")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--judged", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    x, y = mnist_images(args.data, train=True)
    images = x[-args.images :], y[-args.images :]
    x, y = mnist_images(args.data, train=False)
    judge = x[: args.judged], y[: args.judged]
    started = time.perf_counter()
    result: dict[str, Any] = {name: value for name, value in vars(args).items() if name not in ("data", "out")}
    model = robust_lenet()
    config = PwoAConfig(
        sparsity=1 - 1 / args.compression,
        train_loader=images,
        eps=EPS,
        epochs=args.epochs,
        seed=args.seed,
        progress=False,
    )
    _, masks = PwoAPruner(model, config).compress()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    print(f"pruned in {time.perf_counter() - started:.0f} s", flush=True)
    result["pruned"] = judged(model, judge, args.seed)
    print("pruned", result["pruned"], f"{time.perf_counter() - started:.0f} s", flush=True)
    for kind in ("QAT", "PTQ"):
        torch.manual_seed(args.seed)
        model, zeros = quantized(kind, weights, masks, images, args)
        result[kind] = judged(model, judge, args.seed) | {"zeros": zeros}
        result[kind]["lost"] = result["pruned"]["PGD-20"] - result[kind]["PGD-20"]
        print(kind, result[kind], f"{time.perf_counter() - started:.0f} s", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"quantized-mnist-{args.compression:g}x-seed{args.seed}.json"
    write_text(path, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
