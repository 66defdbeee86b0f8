"""`TransformersEvaluator` in real trainings of a tiny ViT."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import nni
import pytest
import torch
from conftest import make_images
from nni.compression.pruning import AGPPruner, LevelPruner
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from pwoa_plugin import PwoADistiller, PwoAPruner, TransformersEvaluator

PRUNED = [
    {"op_names_re": [r"vit\.(encoder|layers?)\..*"], "op_types": ["Linear"], "target_names": ["weight"]}
    | {"sparse_ratio": 0.5, "granularity": [1]}
]


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


def sparsity(model: nn.Module) -> float:
    layers = [m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("vit.")]
    return sum(int(w.eq(0).sum()) for w in layers) / sum(w.numel() for w in layers)


@pytest.mark.parametrize("how", ["pruner", "distiller"])
@pytest.mark.parametrize(("steps", "epochs"), [(24, None), (None, 4)])
def test_a_trainer_prunes(tmp_path: Path, how: str, steps: int | None, epochs: int | None) -> None:
    model = tiny_vit()
    evaluator = TransformersEvaluator(traced_trainer(model, tmp_path))
    assert evaluator.steps_per_epoch == 6
    if how == "pruner":
        pruner = PwoAPruner(model, PRUNED, evaluator, eps=0.1, steps_per_epoch=evaluator.steps_per_epoch)
        pruner.compress(steps, epochs)
        pruner.unwrap_model()
    else:
        teacher = copy.deepcopy(model)
        agp = AGPPruner(LevelPruner(model, PRUNED), interval_steps=4, total_times=4, evaluator=evaluator)
        distiller = PwoADistiller.from_compressor(agp, [], teacher_model=teacher, eps=0.1)
        distiller.compress(steps, epochs)
        assert set(distiller.terms) == {"distillation", "features", "hsic_x", "hsic_y"}
        distiller.unwrap_model()
    assert sparsity(model) == pytest.approx(0.5, abs=0.01)
    assert model(make_images(8)[0]).logits.isfinite().all()
