"""`OwnLossEvaluator` around a real evaluator."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nni.compression.utils import Evaluator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pwoa_plugin import make_evaluator
from pwoa_plugin.nni.evaluators.own_loss import OwnLossEvaluator


@pytest.fixture
def around(trained: nn.Module, images: Any) -> OwnLossEvaluator:
    loader = DataLoader(TensorDataset(*images), batch_size=32)
    return OwnLossEvaluator(
        make_evaluator(trained, loader, evaluating_func=lambda model: 0.5, dummy_input=images[0][:2])
    )


def test_the_own_loss_is_patched_before_all_others(trained: nn.Module, around: OwnLossEvaluator) -> None:
    order: list[str] = []

    def patch(name: str) -> Any:
        def patched(loss: Tensor, batch: Any) -> Tensor:
            order.append(name)
            return loss

        return patched

    names = {name: name for name, _ in trained.named_parameters()}
    around.bind_model(trained, names)
    around.patch_loss(patch("first"))
    around.patch_own_loss(patch("own"))
    around.patch_loss(patch("last"))
    around.train(2, None)
    assert order == ["own", "first", "last"] * 2
    around.unbind_model()
    order.clear()
    around.bind_model(trained, names)
    around.train(1, None)
    assert order == []
    around.patch_loss(patch("interrupted"))
    around.bind_model(trained, names)
    around.train(1, None)
    assert order == []
    around.unbind_model()


def test_all_else_is_the_evaluators_own(trained: nn.Module, around: OwnLossEvaluator, images: Any) -> None:
    assert isinstance(around, Evaluator)
    assert around.steps_per_epoch == 6
    assert around._initialization_complete
    around.bind_model(trained, {name: name for name, _ in trained.named_parameters()})
    assert around.model is trained
    assert around.evaluate() == 0.5
    assert torch.equal(around.get_dummy_input(), images[0][:2])
    steps: list[int] = []
    around.patch_optimizer_step([], [lambda: steps.append(1)])
    around.train(3, None)
    assert len(steps) == 3
    around.unbind_model()
    assert copy.deepcopy(around).steps_per_epoch == 6
    public = {name for name in vars(Evaluator) if callable(getattr(Evaluator, name)) and not name.startswith("__")}
    assert public - set(vars(OwnLossEvaluator)) == {"_optimizer_add_param_group"}  # helper of the evaluators themselves
