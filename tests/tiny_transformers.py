"""A tiny ViT of Transformers and its Trainer, for tests that also need them in other processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nni
import torch
from conftest import make_images
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification


class Images(Dataset[Any]):
    def __init__(self, n: int = 96) -> None:
        self.x, self.y = make_images(n)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"pixel_values": self.x[i], "labels": self.y[i]}


def tiny_vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(**shape, num_hidden_layers=2, num_attention_heads=2, num_labels=3))


def traced_trainer(model: nn.Module, out: Path, **options: Any) -> Trainer:
    given = {"output_dir": str(out), "per_device_train_batch_size": 16, "num_train_epochs": 1000, "use_cpu": True}
    given |= {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    given |= {"learning_rate": 1e-3, "seed": 0}
    trainer_options = {name: options.pop(name) for name in ("optimizers", "compute_loss_func") if name in options}
    args = TrainingArguments(**given | options)
    return nni.trace(Trainer)(model=model, args=args, train_dataset=Images(), **trainer_options)
