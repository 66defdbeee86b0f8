"""`TransformersEvaluator` in real trainings of a tiny ViT."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import nni
import pytest
import torch
from conftest import make_images
from nni.compression.pruning import AGPPruner, LevelPruner
from tiny_transformers import tiny_vit, traced_trainer
from torch import nn
from transformers import Trainer

import pwoa_plugin
from pwoa_plugin import PwoADistiller, PwoAPruner, TransformersEvaluator

PRUNED = [
    {"op_names_re": [r"vit\.(encoder|layers?)\..*"], "op_types": ["Linear"], "target_names": ["weight"]}
    | {"sparse_ratio": 0.5, "granularity": [1]}
]


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
    start = dict(tiny_vit().named_parameters())
    for name, weight in model.named_parameters():  # trained, and not masked only
        if "mask_token" not in name:
            assert ((weight - start[name]) * (weight != 0)).abs().sum() > 0, name
    assert model(make_images(8)[0]).logits.isfinite().all()


@pytest.mark.parametrize("own_loss", [False, True])
def test_accumulated_batches_are_averaged_with_what_compressors_add(tmp_path: Path, own_loss: bool) -> None:
    """Two batches of 16, accumulated, move the weights as one of 32 does, by SGD."""

    def compute_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs.logits, labels)

    moved = []
    for batch_size, accumulated in ((32, 1), (16, 2)):
        model = tiny_vit().eval()
        options: dict[str, Any] = {"per_device_train_batch_size": batch_size, "max_grad_norm": 0.0}
        options |= {"gradient_accumulation_steps": accumulated, "optim": "sgd", "lr_scheduler_type": "constant"}
        if own_loss:
            options["compute_loss_func"] = compute_loss
        evaluator = TransformersEvaluator(traced_trainer(model, tmp_path, **options))
        assert evaluator.steps_per_epoch == 3
        evaluator._init_optimizer_helpers(model)
        evaluator.bind_model(model, {name: name for name, _ in model.named_parameters()})

        def patch(loss: torch.Tensor, batch: Any, model: nn.Module = model) -> torch.Tensor:
            return loss + model(batch["pixel_values"]).logits.square().mean()

        evaluator.patch_loss(patch)
        evaluator.train(1, None)
        evaluator.unbind_model()
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in tiny_vit().parameters()])
    assert (moved[0] - start).norm() > 0
    torch.testing.assert_close(moved[0] - start, moved[1] - start, rtol=1e-3, atol=1e-6)


def test_tasks_run_around_each_step_and_the_trainers_settings_stay(tmp_path: Path) -> None:
    model = tiny_vit()
    trainer = traced_trainer(model, tmp_path, max_steps=7)
    methods = Trainer.get_optimizer_cls_and_kwargs, Trainer.compute_loss
    evaluator = TransformersEvaluator(trainer)
    evaluator._init_optimizer_helpers(model)
    assert (Trainer.get_optimizer_cls_and_kwargs, Trainer.compute_loss) == methods
    told: list[str] = []
    for train, count in (((None, 1), 6), ((3, None), 3), ((None, None), 7)):
        told.clear()
        evaluator.bind_model(model, {name: name for name, _ in model.named_parameters()})
        evaluator.patch_optimizer_step([lambda: told.append("before")], [lambda: told.append("after")])
        evaluator.train(*train)
        assert evaluator.trainer.args.max_steps == 7
        evaluator.unbind_model()
        assert told == ["before", "after"] * count


def test_the_users_own_optimizer_and_scheduler(tmp_path: Path) -> None:
    model = tiny_vit()
    optimizer = nni.trace(torch.optim.Adam)(model.parameters(), lr=1e-3)
    schedule = nni.trace(torch.optim.lr_scheduler.LambdaLR)(optimizer, lr_lambda=lambda step: 1.0)
    evaluator = TransformersEvaluator(traced_trainer(model, tmp_path, optimizers=(optimizer, schedule)))
    pruner = PwoAPruner(model, PRUNED, evaluator, eps=0.1)
    pruner.compress(6, None)
    pruner.unwrap_model()
    assert sparsity(model) == pytest.approx(0.5, abs=0.01)


def test_what_nni_could_not_rebuild_is_refused(tmp_path: Path) -> None:
    model = tiny_vit()
    untraced = torch.optim.Adam(model.parameters(), lr=1e-3)
    evaluator = TransformersEvaluator(traced_trainer(model, tmp_path, optimizers=(untraced, None)))
    with pytest.raises(ValueError, match="this Adam is not traced"):
        PwoAPruner(model, PRUNED, evaluator)
    assert not any(hasattr(module, "_nni_wrapper") for module in model.modules())


def test_without_transformers_an_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it fails
    monkeypatch.delitem(sys.modules, "pwoa_plugin.nni.evaluators.transformers")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "pwoa-plugin\[transformers\]"'):
        _ = pwoa_plugin.TransformersEvaluator
