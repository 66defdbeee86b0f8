"""PwoAPruner under Lightning's DDP: two processes beside one, of the same total batch.

    python -m benchmarks.two_processes --data DIR --processes 1
    python -m benchmarks.two_processes --data DIR --processes 2

The shipped LeNet at 4x (the same ratio in each layer) on 5,000 natural images of MNIST, 4 epochs, batches of 128 in
all, gloo on one machine. PGD-40 on 500 test images. Each number of processes has a JSON file in --out; one that exists
is not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import nni
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pwoa_plugin import LightningEvaluator, PwoAPruner, evaluate
from pwoa_plugin._files import write_text
from pwoa_plugin.models import robust_lenet

from .subjects import SUBJECTS, mnist_images

EPS = SUBJECTS["mnist"].eps
PRUNED = [{"op_types": ["Conv2d", "Linear"], "target_names": ["weight"], "sparse_ratio": 0.75, "granularity": [1]}]


class Module(pl.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return nni.trace(torch.optim.Adam)(self.parameters(), lr=1e-3)


@nni.trace
class Images(pl.LightningDataModule):
    def __init__(self, root: Path, images: int, batch_size: int) -> None:
        super().__init__()
        self.root, self.images, self.batch_size = root, images, batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        x, y = mnist_images(self.root, train=True)
        data = TensorDataset(x[-self.images :], y[-self.images :])
        return DataLoader(data, batch_size=self.batch_size, shuffle=True, drop_last=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--judged", type=int, default=500)
    args = parser.parse_args()
    path = args.out / f"two-processes-{args.processes}.json"
    if "LOCAL_RANK" not in os.environ and path.exists():
        print(path.read_text(encoding="utf-8"))
        return
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    model = Module(robust_lenet())
    trainer = nni.trace(pl.Trainer)(
        accelerator="cpu",
        devices=args.processes,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    evaluator = LightningEvaluator(trainer, Images(args.data, args.images, 128 // args.processes))
    pruner = PwoAPruner(model, PRUNED, evaluator, eps=EPS, steps_per_epoch=evaluator.steps_per_epoch)
    started = time.perf_counter()
    _, masks = pruner.compress(None, args.epochs)
    seconds = time.perf_counter() - started
    pruner.unwrap_model()
    digest = hashlib.sha256()
    for targets in masks.values():
        digest.update(targets["weight"].to(torch.uint8).numpy().tobytes())
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    digests: list[Any] = [None] * args.processes
    torch.distributed.all_gather_object(digests, digest.hexdigest())
    if torch.distributed.get_rank() > 0:
        return
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    x, y = mnist_images(args.data, train=False)
    report = evaluate(model.net, (x[: args.judged], y[: args.judged]), eps=EPS, attacks=["PGD-40"], progress=False)
    result = {
        "processes": args.processes,
        "images": args.images,
        "epochs": args.epochs,
        "steps_per_epoch": evaluator.steps_per_epoch,
        "prune_seconds": seconds,
        "ranks_equal": len(set(digests)) == 1,
        "kept": sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights),
        "clean": report.clean,
        "PGD-40": report.attacks["PGD-40"].accuracy,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
