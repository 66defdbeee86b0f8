"""`PwoAGroupPruner.compress`: a whole run, interrupted, resumed, failed."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EVERY_STEP, make_images
from interrupted import InterruptAt
from torch import Tensor, nn

from pwoa_plugin import PwoAConfig, PwoALoss, PwoAPruner
from pwoa_plugin._random import seeded
from pwoa_plugin.errors import TrainingError
from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.method.snapshot import Snapshot
from pwoa_plugin.runs.state_file import read_state, write_state
from pwoa_plugin.torch_pruning import PwoAGroupPruner, load_pruned, save_pruned


def config(**fields: Any) -> PwoAConfig:
    values: dict[str, Any] = {"sparsity": 0.5, "granularity": "structured", "train_loader": make_images(96)}
    return PwoAConfig(**(values | {"epochs": 4, "eps": 0.1, "batch_size": 32, "progress": False} | fields))


class Keep(Callback):
    """States by step, and the loss by epoch."""

    def __init__(self) -> None:
        self.states: dict[int, Snapshot] = {}
        self.pruner: PwoAGroupPruner | None = None
        self.widths: list[int] = []

    def on_step(self, status: Status) -> None:
        assert self.pruner is not None
        assert self.pruner.run is not None
        state = self.pruner.run.state()
        tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
        self.states[status.step] = Snapshot(tensors, copy.deepcopy(state.facts))
        self.widths.append(self.pruner.model.conv3.out_channels)


def compressed(model: nn.Module, **fields: Any) -> tuple[PwoAGroupPruner, Keep]:
    keep = Keep()
    pruner = PwoAGroupPruner(model, config=config(**fields), callbacks=[keep])
    keep.pruner = pruner
    assert pruner.compress() is model
    return pruner, keep


def test_it_draws_removes_and_finetunes(small: nn.Module, x: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    dense = copy.deepcopy(small)
    with caplog.at_level(logging.INFO):
        sgd = {"name": "sgd", "lr": 0.03}
        pruner, keep = compressed(
            small, epochs=10, batch_size=8, admm={"epochs": 8, "rho": 1.0}, optimizer=sgd, **EVERY_STEP
        )
    assert keep.widths == [12] * 96 + [6] * 24
    assert small.conv1.out_channels == 4
    assert small.fc2.in_features == 8
    assert small(x).shape == (4, 3)
    assert pruner.residual is not None
    assert pruner.residual < 0.1
    assert pruner.run is not None
    history = pruner.run.history
    assert [epoch["phase"] for epoch in history] == ["admm"] * 8 + ["fine-tune"] * 2
    # Features go on being compared, of the channels that are left; HSIC does not mind other widths.
    assert {"features", "hsic_x"} < history[-1].keys()
    assert "no feature distillation of" not in caplog.text
    # The teacher is the dense network still.
    teacher = pruner.run.teacher
    assert all(torch.equal(one, other) for one, other in zip(teacher.parameters(), dense.parameters(), strict=True))
    assert all(parameter.is_contiguous() for parameter in small.parameters())


def test_the_dense_network_s_gradients_are_let_go(small: nn.Module) -> None:
    dense = list(small.parameters())
    pruner, _ = compressed(small)
    left = {id(parameter) for parameter in small.parameters()}
    gone = [parameter for parameter in dense if id(parameter) not in left]
    assert gone
    assert all(parameter.grad is None for parameter in gone)
    assert pruner.run is not None
    pruner.run.target.undo()  # nothing is kept to go back to
    assert small.conv3.out_channels == 6


def test_the_inputs_that_are_left_are_the_teachers(
    small: nn.Module, x: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    """Pruned without training, each reader's weights are a part of the dense ones, at the indices that are told."""
    dense = copy.deepcopy(small)
    pruner = PwoAGroupPruner(small, x, pruning_ratio=0.5, iterative_steps=2)
    loss = PwoALoss(small, eps=0.1, student_channels=pruner.student_channels)
    for _ in range(2):
        pruner.step()
        loss(small, x, torch.tensor([0, 1, 2, 0]))
        assert "features" in loss.terms
    # A teacher made of the pruned network has as many channels as that, and is compared whole.
    late = PwoALoss(small, eps=0.1, student_channels=pruner.student_channels, **EVERY_STEP)
    late(small.eval(), x, torch.tensor([0, 1, 2, 0]))
    assert float(late.terms["features"]) == pytest.approx(0, abs=1e-9)
    assert "no feature distillation of" not in caplog.text
    assert set(pruner.student_channels) == {"conv2", "conv3", "fc1", "fc2"}
    for name, (dim, indices) in pruner.student_channels.items():
        before, after = dense.get_submodule(name).weight, small.get_submodule(name).weight
        assert dim == (1 if name.startswith("conv") else -1)
        of_kept = before.index_select(1, indices)
        assert all(any(torch.equal(row, other) for other in of_kept) for row in after)


@pytest.mark.parametrize("allocation", ["uniform", "global", "lamp", "erk"])
def test_allocations_spread_the_ratio_over_groups(small: nn.Module, allocation: str) -> None:
    fields = {"epochs": 1, "admm": {"epochs": 0}, "allocation": allocation, "sparsity": 0.75}
    compressed(small, **fields)
    left = small.conv1.out_channels + small.conv3.out_channels + small.fc1.out_features
    assert left == (8 + 12 + 16) // 4


def test_structured_is_uniform_unless_told() -> None:
    assert config().allocation == "uniform"
    assert config(allocation="lamp").allocation == "lamp"
    assert PwoAConfig(sparsity=0.5, train_loader=make_images(8)).allocation == "lamp"


def test_a_loop_of_ones_own_by_a_config(small: nn.Module) -> None:
    pruner = PwoAGroupPruner(small, config=config(epochs=8, admm={"rho": 0.5}))
    assert (pruner.admm_config.epochs, pruner.admm_config.rho) == (2, 0.5)


def test_layers_can_be_left_alone(small: nn.Module) -> None:
    compressed(small, epochs=1, admm={"epochs": 0}, exclude=["conv3"])
    assert (small.conv3.out_channels, small.conv1.out_channels, small.fc1.out_features) == (12, 4, 8)


def test_on_a_pruned_model_it_tells_all_removals_and_takes_its_own_back(
    small: nn.Module, x: Tensor, tmp_path: Path
) -> None:
    PwoAGroupPruner(small, x, pruning_ratio=0.25).step()
    fields = {"epochs": 2, "admm": {"epochs": 1}}
    pruned = copy.deepcopy(small)
    stopped = PwoAGroupPruner(pruned, config=config(**fields), callbacks=[InterruptAt(5)])
    earlier = stopped.removals
    with pytest.raises(KeyboardInterrupt):
        stopped.compress()
    assert stopped.removals == earlier

    twin = copy.deepcopy(small)
    pruner, keep = compressed(small, **fields)
    save_pruned(pruner, tmp_path / "small.safetensors")
    assert torch.equal(load_pruned(type(small)().eval(), tmp_path / "small.safetensors")(x), small.eval()(x))
    again = PwoAGroupPruner(twin, config=config(**fields))
    assert again.run is not None
    with seeded(0):
        again.run.fit(resume=keep.states[5])
    assert again.removals == pruner.removals
    assert torch.equal(twin.eval()(x), small(x))


@pytest.mark.parametrize("step", [1, 5, 6, 7, 11])
def test_it_resumes_to_the_same_bits(small: nn.Module, tmp_path: Path, step: int) -> None:
    fresh = copy.deepcopy(small)
    fields = {"admm": {"epochs": 2}, "optimizer": {"name": "sgd", "lr": 0.01}}
    _, keep = compressed(small, **fields)
    write_state(tmp_path / "state.safetensors", keep.states[step])

    again = PwoAGroupPruner(fresh, config=config(**fields))
    assert again.run is not None
    with seeded(0):
        again.run.fit(resume=read_state(tmp_path / "state.safetensors"))
    expected, found = small.state_dict(), fresh.state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    save_pruned(again, tmp_path / "small.safetensors")
    loaded = load_pruned(type(small)(), tmp_path / "small.safetensors")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("step", [2, 9])
def test_interrupted_it_is_as_it_was_and_can_be_run_again(small: nn.Module, x: Tensor, step: int) -> None:
    fresh = copy.deepcopy(small)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    ids = [id(parameter) for parameter in small.parameters()]
    pruner = PwoAGroupPruner(small, config=config(admm={"epochs": 2}), callbacks=[InterruptAt(step)])
    with pytest.raises(KeyboardInterrupt):
        pruner.compress()
    after = small.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert [id(parameter) for parameter in small.parameters()] == ids
    assert small.conv3.out_channels == 12
    assert small(x).shape == (4, 3)
    assert not pruner.removals

    pruner.callbacks.clear()
    pruner.compress()
    compressed(fresh, admm={"epochs": 2})
    assert all(torch.equal(one, other) for one, other in zip(small.parameters(), fresh.parameters(), strict=True))


def test_an_error_after_the_last_step_leaves_the_model_too(small: nn.Module, x: Tensor) -> None:
    class Full(Callback):
        def on_end(self, status: Status | None) -> None:
            raise OSError("no space left on device")

    small.eval()
    before = small(x)
    pruner = PwoAGroupPruner(small, config=config(), callbacks=[Full()])
    with pytest.raises(OSError, match="no space"):
        pruner.compress()
    assert small.conv3.out_channels == 12
    assert torch.equal(small(x), before)


def test_a_loss_that_is_no_number_leaves_the_model(small: nn.Module) -> None:
    pruner = PwoAGroupPruner(small, config=config(admm={"epochs": 0}, optimizer={"name": "sgd", "lr": 1e30}))
    with pytest.raises(TrainingError, match="the model is as it was"):
        pruner.compress()
    assert small.conv3.out_channels == 12


class TestRefused:
    def test_masks_are_the_other_doors(self, small: nn.Module) -> None:
        with pytest.raises(ValueError, match=r"granularity='structured' removes channels.*PwoAGroupPruner"):
            PwoAPruner(small, config())
        with pytest.raises(ValueError, match=r"granularity='filter' masks weights: use pwoa_plugin\.PwoAPruner"):
            PwoAGroupPruner(small, config=config(granularity="filter"))

    @pytest.mark.parametrize(
        "given",
        [{"pruning_ratio": 0.5}, {"ignored_layers": ["conv1"]}, {"global_pruning": True}, {"iterative_steps": 2}],
    )
    def test_what_the_config_says_is_said_there(self, small: nn.Module, given: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(given))}: with a config, say it there"):
            PwoAGroupPruner(small, config=config(), **given)

    @pytest.mark.parametrize(
        ("fields", "match"),
        [
            ({"sparsity": 0.01}, "^sparsity=0.01 leaves every channel"),
            ({"exclude": ["conv*", "fc1"]}, "no layer is left to prune.*shorten exclude$"),
            ({"train_loader": make_images(8)[0].flatten(1)}, "^train_loader"),
            ({"train_loader": torch.rand(8, 3, 8, 8)}, "^train_loader: conv1"),
        ],
    )
    def test_its_fields_are_what_is_named(self, small: nn.Module, fields: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            PwoAGroupPruner(small, config=config(hsic={"lambda_y": 0}, **fields))

    def test_what_is_to_be_excluded(self, small: nn.Module) -> None:
        small.conv3.weight.requires_grad_(False)
        with pytest.raises(ValueError, match=r"list conv[0-9], whose channels it has, in exclude$"):
            PwoAGroupPruner(small, config=config())

    def test_no_sparsity(self) -> None:
        with pytest.raises(ValueError, match="sparsity is missing"):
            config(sparsity=None)

    def test_no_config(self, small: nn.Module, x: Tensor) -> None:
        with pytest.raises(ValueError, match="compress: give PwoAGroupPruner a config"):
            PwoAGroupPruner(small, x).compress()
        with pytest.raises(ValueError, match=r"example_inputs: conv1 .* fails on them: TypeError"):
            PwoAGroupPruner(small)

    def test_twice(self, small: nn.Module) -> None:
        pruner, _ = compressed(small, epochs=1)
        with pytest.raises(ValueError, match="channels are removed already"):
            pruner.compress()

    def test_a_state_of_another_network(self, small: nn.Module) -> None:
        _, keep = compressed(copy.deepcopy(small), admm={"epochs": 1})
        state = keep.states[12]
        state.facts["target"]["removals"][0][0] = "conv9"
        pruner = PwoAGroupPruner(small, config=config(admm={"epochs": 1}))
        assert pruner.run is not None
        with pytest.raises(ValueError, match="saved state is of another network"):
            pruner.run.fit(resume=state)
        assert small.conv3.out_channels == 12


def test_input_gradients_are_distilled_before_and_after_the_removal(small: nn.Module) -> None:
    pruner, _ = compressed(small, distillation={"gradient_weight": 1, "gradient_share": 1})
    assert pruner.run is not None
    assert len(pruner.run.history) == 4
    assert all(epoch["gradients"] > 0 for epoch in pruner.run.history)  # type: ignore[operator]
