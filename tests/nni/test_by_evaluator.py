"""`PwoAPruner` by NNI's config_list: phases, lengths and the teacher."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nni.compression.pruning import AGPPruner
from torch import Tensor, nn

from pwoa_plugin import PwoAPruner
from pwoa_plugin.config import ADMMConfig

from .conftest import ENTRIES, MakeEvaluator, Pair


def test_teacher_model_replaces_the_model_as_teacher(
    trained: nn.Module, trained_state: dict[str, Tensor], images: Pair, evaluator: MakeEvaluator
) -> None:
    model = copy.deepcopy(trained)  # which has lost its last layer
    model.fc2.reset_parameters()
    pruner = PwoAPruner(model, ENTRIES, evaluator(model, images), teacher_model=trained, eps=0.1)
    assert torch.equal(pruner.teacher(images[0][:4]), trained(images[0][:4]))
    before = (model(images[0]).argmax(1) == trained(images[0]).argmax(1)).float().mean()
    pruner.compress(60)
    pruner.unwrap_model()
    agreement = (model(images[0]).argmax(1) == trained(images[0]).argmax(1)).float().mean()
    assert agreement > max(0.6, before + 0.2)
    assert all(torch.equal(value, trained_state[name]) for name, value in trained.state_dict().items())
    assert all(parameter.requires_grad for parameter in trained.parameters())
    with pytest.raises(ValueError, match="teacher_model is not of the model's architecture"):
        PwoAPruner(model, ENTRIES, evaluator(model, images), teacher_model=nn.Linear(3, 3))


@pytest.mark.parametrize("admm", [None, {"epochs": 1}])
def test_second_compress_with_a_config_list(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator, admm: dict[str, Any] | None
) -> None:
    pruner = PwoAPruner(trained, ENTRIES, evaluator(trained, images), admm=admm, eps=0.1, steps_per_epoch=6)
    for epochs in (4, 5):
        _, masks = pruner.compress(None, epochs)
        kept = sum(int(m["weight"].sum()) for m in masks.values())
        assert kept == pytest.approx(0.25 * sum(m["weight"].numel() for m in masks.values()), abs=1)
        assert (pruner.residual is not None) == bool(admm)


def test_the_length_must_be_given(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    pruner = PwoAPruner(trained, ENTRIES, evaluator(trained, images))
    with pytest.raises(ValueError, match="give max_steps or max_epochs"):
        pruner.compress()
    with pytest.raises(ValueError, match="max_epochs needs steps_per_epoch"):
        pruner.compress(max_epochs=2)
    pruner.unwrap_model()


def test_the_evaluator_may_know_the_steps_of_an_epoch(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator
) -> None:
    made = evaluator(trained, images)
    made.steps_per_epoch = 6
    pruner = PwoAPruner(trained, ENTRIES, made, admm=ADMMConfig(epochs=2, interval=1), eps=0.1)
    pruner.compress(max_epochs=4)
    assert pruner.residual is not None
    pruner.steps_per_epoch = 6
    assert [(phase.name, phase.length, phase.interval) for phase in phases_of(pruner, 24)] == [("admm", 12, 6)]
    pruner.unwrap_model()


def test_a_scheduler_leaves_no_room_for_epochs_of_admm(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator
) -> None:
    pruner = PwoAPruner(trained, ENTRIES, evaluator(trained, images), admm=ADMMConfig(epochs=1), steps_per_epoch=6)
    agp = AGPPruner(pruner, interval_steps=2, total_times=3)
    with pytest.raises(ValueError, match="admm: inside a scheduler"):
        agp.compress(12, None)
    agp.unwrap_model()


def phases_of(pruner: PwoAPruner, steps: int | None, scheduler: tuple[int, int] | None = None) -> list[Any]:
    """Those with a step, and `PwoAPruner`'s own way to ask for them."""
    found = pruner._strategy.phases(
        pruner._target, steps, pruner.steps_per_epoch, scheduler=scheduler, check=lambda: None
    )
    return [phase for phase in found if phase.length]


@pytest.mark.parametrize(
    ("admm", "gradual", "steps", "per_epoch", "expected"),
    [
        ({}, {}, 1000, None, [("gradual", 500, 10)]),  # half of the steps
        ({}, {}, 40, None, [("gradual", 20, 1)]),
        ({}, {}, 3, None, [("gradual", 1, 1)]),  # too short for a cut: the hard prune follows the first step
        ({}, {"epochs": 3, "interval": 1}, 40, 6, [("gradual", 18, 1)]),
        ({"rho": 0.2}, {}, 40, None, [("admm", 10, 2)]),  # ADMM alone is set: a quarter
        ({}, {"epochs": 0}, 40, None, [("admm", 10, 2)]),
        ({"rho": 0.2}, {}, 7, None, [("admm", 1, 2)]),
        ({"epochs": 0}, {}, 40, 6, []),
        ({"epochs": 3}, {}, 40, 6, [("admm", 18, 2)]),
        ({"rho": 0.5}, {"epochs": 2}, 40, 6, [("admm", 10, 2), ("gradual", 12, 1)]),
    ],
)
def test_lengths_and_intervals_of_phases(
    trained: nn.Module,
    images: Pair,
    evaluator: MakeEvaluator,
    admm: dict[str, Any],
    gradual: dict[str, Any],
    steps: int,
    per_epoch: int | None,
    expected: list[tuple[str, int, int]],
) -> None:
    made = evaluator(trained, images)
    pruner = PwoAPruner(trained, ENTRIES, made, admm=admm, gradual=gradual, steps_per_epoch=per_epoch)
    assert [(phase.name, phase.length, phase.interval) for phase in phases_of(pruner, steps)] == expected


def test_n_of_m_is_reached_by_admm(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    entry = [{"op_names": ["fc1"], "granularity": "2:4"}]
    pruner = PwoAPruner(trained, entry, evaluator(trained, images))
    assert [(phase.name, phase.length) for phase in phases_of(pruner, 40)] == [("admm", 10)]
    pruner.unwrap_model()
    with pytest.raises(ValueError, match="does not go with n:m, which is reached in one cut"):
        PwoAPruner(trained, entry, evaluator(trained, images), gradual={"epochs": 1})


@pytest.mark.parametrize(("steps", "prune"), [(50, 50), (51, 50), (54, 52), (200, 60), (None, 60)])
def test_in_a_scheduler_the_weights_get_time_to_follow_the_last_update(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator, steps: int | None, prune: int
) -> None:
    pruner = PwoAPruner(trained, ENTRIES, evaluator(trained, images))
    (phase,) = phases_of(pruner, steps, scheduler=(10, 5))
    assert (phase.name, phase.interval, phase.last_action, phase.length) == ("admm", 10, 50, prune)
    assert steps is None or steps - prune >= prune - 50
    with pytest.raises(ValueError, match="30 steps are over before the scheduler's last update, at step 50"):
        phases_of(pruner, 30, scheduler=(10, 5))


def test_admm_and_gradual_pruning_one_after_the_other(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator
) -> None:
    zeros: list[float] = []

    def look(model: nn.Module, _: Tensor) -> None:
        zeros.append(float((model.fc1._nni_wrapper.weight == 0).float().mean()))

    made = evaluator(trained, images, seen=look)
    both: dict[str, Any] = {"admm": {"epochs": 1}, "gradual": {"epochs": 2, "interval": 3}}
    pruner = PwoAPruner(trained, ENTRIES, made, eps=0.1, steps_per_epoch=6, **both)
    pruner.compress(max_epochs=4)
    cuts = [0.75 * (1 - (1 - n / 4) ** 3) for n in (1, 2, 3)]
    expected = [0.0] * 8 + [cut for cut in cuts for _ in range(3)] + [0.75] * 7
    assert zeros == pytest.approx(expected, abs=1e-3)
    assert pruner.residual is not None
