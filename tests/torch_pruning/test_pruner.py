"""`PwoAGroupPruner`: ADMM on groups, which channels go, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned_networks import assert_refused, state_of, widths
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin.config import ADMMConfig
from pwoa_plugin.torch_pruning import PwoAGroupPruner, load_pruned, save_pruned

Zeroed = Callable[..., nn.Module]


def train(model: nn.Module, pruner: PwoAGroupPruner, x: Tensor, *, epochs: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(epochs):
        pruner.update_regularizer()
        for _ in range(20):
            optimizer.zero_grad()
            model(x).square().mean().mul(1e-4).backward()
            pruner.regularize(model, None)
            optimizer.step()


class TestChannels:
    @pytest.mark.parametrize("order", [iter, list, lambda groups: reversed([*groups])])
    def test_interactive_yields_groups_to_prune_in_whatever_order(
        self, small: nn.Module, x: Tensor, order: Callable[[Any], Any]
    ) -> None:
        """Also held in a list, where Torch-Pruning's own have the wrong channels behind a concatenation."""
        whole = copy.deepcopy(small)
        PwoAGroupPruner(whole, x, pruning_ratio=0.5).step()
        pruner = PwoAGroupPruner(small, x, pruning_ratio=0.5)
        for group in order(pruner.step(interactive=True)):
            assert group[0].dep.target.module is dict(small.named_modules())[group[0].dep.target.name.split(" ")[0]]
            group.prune()
        assert all(torch.equal(one, other) for one, other in zip(small.parameters(), whole.parameters(), strict=True))

    def test_groups_that_nobody_has_looked_at_grow_old_too(self, small: nn.Module, x: Tensor) -> None:
        pruner = PwoAGroupPruner(small, x, pruning_ratio=0.5, iterative_steps=2)
        pruner.update_regularizer()
        admm = pruner.target.admm
        old, new = pruner.step(interactive=True), pruner.step(interactive=True)
        assert new is not None
        for group in new:
            group.prune()
        assert old is not None
        with pytest.raises(ValueError, match=r"this group is of an earlier step\(\)"):
            next(old)
        assert admm is not None
        assert pruner.target.admm is None

    def test_what_is_pruned_interactively_counts_at_once(self, small: nn.Module, x: Tensor, tmp_path: Path) -> None:
        small.fc2.requires_grad_(False)
        adapted = []
        pruner = PwoAGroupPruner(small, x, iterative_steps=2, ignored_layers=["fc1"], adapt=adapted.append)
        pruner.update_regularizer()
        groups = {group[0].dep.target.name.split(" ")[0]: group for group in pruner.step(interactive=True)}
        groups["conv3"].prune([0, 3])
        assert pruner.pruning_history() == [["conv3", True, [0, 3]]]
        assert widths(small) == {"conv1": 8, "conv2": 8, "conv3": 10, "fc1": 16, "fc2": 3}
        assert adapted[-1] is small
        assert not small.fc2.weight.requires_grad
        assert pruner.student_channels["fc1"][1].tolist() == [i for i in range(320) if i // 16 not in (8, 11)]
        save_pruned(pruner, tmp_path / "small.safetensors")
        loaded = load_pruned(type(small)().eval(), tmp_path / "small.safetensors", adapt=adapted.append)
        assert torch.equal(loaded(x), small.eval()(x))

        with pytest.raises(ValueError, match="this group is pruned already"):
            groups["conv3"].prune()
        with pytest.raises(ValueError, match=r"conv2 has 8 channels: cannot remove \[8\]"):
            groups["conv2"].prune([8])
        pruner.update_regularizer()  # of the parameters that are new
        pruner.step()
        with pytest.raises(ValueError, match=r"this group is of an earlier step\(\)"):
            groups["conv2"].prune()
        assert widths(small)["conv3"] == 6

    def test_mode_and_requires_grad_come_back(self, small: nn.Module, x: Tensor) -> None:
        small.conv2.eval()
        small.fc2.requires_grad_(False)
        pruner = PwoAGroupPruner(small, x, ignored_layers=["fc1"])
        before = state_of(small)
        pruner.step()
        after = state_of(small)
        assert after["modes"] == before["modes"]
        assert after["asked"] == before["asked"]


class TestADMM:
    def test_what_is_drawn_to_zero_is_what_is_removed(self, small: nn.Module, x: Tensor, zeroed: Zeroed) -> None:
        pruner = PwoAGroupPruner(small, x, pruning_ratio=0.5, admm=ADMMConfig(epochs=6, rho=1.0))
        train(small, pruner, x, epochs=6)
        trained = copy.deepcopy(small)
        before = small.eval()(x)
        pruner.step()
        assert pruner.residual is not None
        assert pruner.residual < 0.02
        oracle = zeroed(trained, pruner, x)
        assert (small(x) - oracle(x)).abs().max() < 1e-6
        # What went was near 0 already; of what stays as much is left.
        assert (small(x) - before).abs().max() < 0.1 * before.abs().max()

    def test_a_weight_in_two_groups_is_penalised_once(self, small: nn.Module, x: Tensor) -> None:
        pruner = PwoAGroupPruner(small, x, pruning_ratio=0.5, admm=ADMMConfig(rho=0.5))
        pruner.update_regularizer()
        for parameter in small.parameters():
            parameter.grad = torch.zeros_like(parameter)
        pruner.regularize(small)
        admm = pruner.target.admm
        assert admm is not None
        names = dict(small.named_parameters())
        assert set(admm.weights) == set(names) - {"fc2.bias"}
        for name in ("conv3.weight", "fc1.weight", "conv2.weight"):  # outputs of one group, inputs of another
            expected = 0.5 * (names[name] - admm.z[name])
            assert torch.allclose(names[name].grad, expected)
            assert (admm.z[name] == 0).any()

    def test_rho_comes_to_its_cap_within_the_epochs_there_are(self, small: nn.Module, x: Tensor) -> None:
        pruner = PwoAGroupPruner(small, x, admm=ADMMConfig(epochs=3, rho=0.1, rho_max=10.0))
        found = []
        for _ in range(3):
            pruner.update_regularizer()
            found.append(pruner.target.admm.rho)
        assert found == pytest.approx([0.1, 1.0, 10.0])

    @pytest.mark.parametrize(
        ("admm", "planned"), [(None, 5), ({"epochs": 3}, 3), ({"epochs": 1}, 2), ({"growth": 2.0}, None)]
    )
    def test_more_calls_than_planned_are_told_of(
        self, small: nn.Module, x: Tensor, admm: Any, planned: int | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        pruner = PwoAGroupPruner(small, x, admm=admm)
        for call in range(1, 8):
            pruner.update_regularizer()
            said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
            assert len(said) == (planned is not None and call > planned)
        if planned is not None:
            assert f"call {planned + 1}, and rho has been at its cap since call {planned}" in said[0]
            assert ("not given (default: 5 calls)" in said[0]) == (admm is None)

    @pytest.mark.parametrize("epochs", [6, 1])
    def test_it_warns_where_channels_were_not_drawn_to_zero(
        self, small: nn.Module, x: Tensor, epochs: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        pruner = PwoAGroupPruner(small, x, pruning_ratio=0.5, admm=ADMMConfig(epochs=6, rho=1.0))
        train(small, pruner, x, epochs=epochs)
        undrawn = 0
        if epochs == 1:  # the order of conv3's filters changes after the last projection
            dead = ~pruner.target.admm.z["conv3.weight"].flatten(1).any(1)
            with torch.no_grad():
                small.conv3.bias[dead] += 10.0
            undrawn = 6
        pruner.step()
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        if epochs == 6:
            assert not said
        else:
            assert len(said) == 1
            assert (
                f", {undrawn} of 18 removed channels not drawn to 0): train for more epochs and set admm.epochs"
                in said[0]
            )

    def test_torch_prunings_order_of_calls(self, small: nn.Module, x: Tensor) -> None:
        pruner = PwoAGroupPruner(small, x, pruning_ratio=0.75, iterative_steps=2)
        with pytest.raises(RuntimeError, match="call update_regularizer"):
            pruner.regularize(small)
        for _ in range(2):
            train(small, pruner, x, epochs=2)
            pruner.step()
        pruner.update_regularizer()  # all is done: nothing to draw to 0 any more
        pruner.regularize(small)
        assert widths(small)["conv3"] == 3


class TestRefused:
    def test_output_which_belongs_to_the_loss(self, small: nn.Module) -> None:
        with pytest.raises(ValueError, match="output: every output keeps its channels; give output= to PwoALoss"):
            PwoAGroupPruner(small, torch.rand(2, 1, 8, 8), output=1)

    @pytest.mark.parametrize(
        ("inputs", "match"),
        [
            (torch.rand(2, 3, 8, 8), "example_inputs: conv1 .* fails on them"),
            (torch.rand(2, 1, 12, 12), "example_inputs: fc1 .* fails on them"),
            ("an image", "example_inputs: conv1 .* fails on them: TypeError"),
            (torch.full((2, 1, 8, 8), float("nan")), "not finite"),
            (torch.rand(0, 1, 8, 8), "empty"),
            (None, "example_inputs: conv1 .* fails on them: TypeError"),
        ],
    )
    def test_inputs(self, small: nn.Module, inputs: Any, match: str) -> None:
        assert_refused(match, small, inputs)

    def test_another_model_to_regularize(self, small: nn.Module, x: Tensor) -> None:
        pruner = PwoAGroupPruner(small, x)
        pruner.update_regularizer()
        with pytest.raises(ValueError, match="regularize: this SmallNet is not the pruner's model"):
            pruner.regularize(copy.deepcopy(small))
        pruner.regularize(nn.DataParallel(small))

    @pytest.mark.parametrize("admm", [3, "long", [("rho", 1.0)]])
    def test_admm_of_another_kind(self, small: nn.Module, x: Tensor, admm: Any) -> None:
        assert_refused("admm is a .*; give a ADMMConfig", small, x, admm=admm)

    def test_admm_as_a_mapping(self, small: nn.Module, x: Tensor) -> None:
        assert PwoAGroupPruner(small, x, admm={"rho": 2.0}).admm_config == ADMMConfig(rho=2.0)
        assert_refused("admm.rho_: unknown key", small, x, admm={"rho_": 2.0})

    def test_a_script_module(self, x: Tensor) -> None:
        with pytest.raises(ValueError, match="model is a ScriptModule"):
            PwoAGroupPruner(torch.jit.script(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 3))), x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_off(small: nn.Module, x: Tensor, mode: Callable[[], Any]) -> None:
    twin = copy.deepcopy(small)
    pruner = PwoAGroupPruner(small, x, pruning_ratio=0.5)
    pruner.step()
    with mode():
        PwoAGroupPruner(twin, x, pruning_ratio=0.5).step()
    assert not any(parameter.is_inference() for parameter in twin.parameters())
    assert all(torch.equal(one, other) for one, other in zip(small.parameters(), twin.parameters(), strict=True))
    twin(x).sum().backward()


def test_it_finetunes_on_the_gpu_type_of_loop(small: nn.Module, x: Tensor) -> None:
    """The loop of the docs, with a loss of labels."""
    y = torch.tensor([0, 1, 2, 0])
    pruner = PwoAGroupPruner(small, x, pruning_ratio=0.5)
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-3)
    for _ in range(2):
        pruner.update_regularizer()
        F.cross_entropy(small(x), y).backward()
        pruner.regularize(small)
        optimizer.step()
        optimizer.zero_grad()
    pruner.step()
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(small(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
