"""The test network as a LightningModule, for one process and, run as a script, for two."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import nni
import pytorch_lightning as pl
import torch
from conftest import TinyNet, make_images
from nni.compression.pruning import AGPPruner, LevelPruner
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pwoa_plugin import LightningEvaluator, PwoADistiller, PwoAPruner

PRUNED = [{"op_types": ["Conv2d", "Linear"], "target_names": ["weight"], "sparse_ratio": 0.75, "granularity": [1]}]


class TinyModule(pl.LightningModule):
    """`TinyNet` trained by cross-entropy."""

    def __init__(self, lr: float = 5e-3, scheduler: str = "") -> None:
        super().__init__()
        self.net, self.lr, self.scheduler = TinyNet(), lr, scheduler
        self.steps, self.seen = 0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        self.steps, self.seen = self.steps + 1, self.seen + x.sum().item()
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = nni.trace(torch.optim.Adam)(self.parameters(), lr=self.lr)
        if not self.scheduler:
            return optimizer
        scheduler = nni.trace(torch.optim.lr_scheduler.StepLR)(optimizer, step_size=1, gamma=0.5)
        if self.scheduler == "lists":
            return [optimizer], [scheduler]
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


@nni.trace
class Images(pl.LightningDataModule):
    def __init__(self, n: int = 192, batch_size: int = 32) -> None:
        super().__init__()
        self.n, self.batch_size = n, batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*make_images(self.n)), batch_size=self.batch_size, shuffle=True)


def quiet() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def evaluator(**options: Any) -> LightningEvaluator:
    batch_size = options.pop("batch_size", 32)
    given = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    given |= {"enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1000} | options
    return LightningEvaluator(nni.trace(pl.Trainer)(**given), Images(batch_size=batch_size))


def pruned_by(how: str, model: nn.Module, made: LightningEvaluator, steps: int | None, epochs: int | None) -> None:
    """Prune, and unwrap."""
    if how == "pruner":
        pruner = PwoAPruner(model, PRUNED, made, eps=0.1, steps_per_epoch=made.steps_per_epoch)
        pruner.compress(steps, epochs)
        pruner.unwrap_model()
        return
    teacher = copy.deepcopy(model)
    agp = AGPPruner(LevelPruner(model, PRUNED), interval_steps=3, total_times=4, evaluator=made)
    distiller = PwoADistiller.from_compressor(agp, [], teacher_model=teacher, eps=0.1)
    distiller.compress(steps, epochs)
    distiller.unwrap_model()


def main() -> None:
    """Prune in two processes, one method after the other; each process leaves its weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--methods", nargs="+", default=["pruner", "distiller"])
    args = parser.parse_args()
    quiet()
    for how in args.methods:
        pl.seed_everything(0, verbose=False)
        model = TinyModule()
        model.net.load_state_dict(torch.load(args.weights, weights_only=True))
        made = evaluator(devices=2, strategy="ddp", batch_size=16)
        steps = made.steps_per_epoch
        pruned_by(how, model, made, args.steps, None)
        rank = torch.distributed.get_rank()
        torch.save(model.net.state_dict(), args.out / f"{how}-{rank}.pt")
        facts = {"world": torch.distributed.get_world_size(), "steps": model.steps}
        facts |= {"steps_per_epoch": steps, "seen": model.seen}
        (args.out / f"{how}-{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
