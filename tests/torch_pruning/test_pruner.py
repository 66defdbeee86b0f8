"""`PwoAGroupPruner`: ADMM on groups, which channels go, and what is refused."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin.config import ADMMConfig
from pwoa_plugin.removal import speedup
from pwoa_plugin.torch_pruning import PwoAGroupPruner, load_pruned, save_pruned

Zeroed = Callable[..., nn.Module]


def widths(model: nn.Module) -> dict[str, int]:
    return {
        name: len(module.weight) for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    }


def state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "asked": [parameter.requires_grad for parameter in model.parameters()],
        "ids": [id(parameter) for parameter in model.parameters()],
    }


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    assert after["tensors"].keys() == before["tensors"].keys()
    assert all(torch.equal(tensor, before["tensors"][name]) for name, tensor in after["tensors"].items())
    assert [after[key] for key in ("modes", "asked", "ids")] == [before[key] for key in ("modes", "asked", "ids")]


def train(model: nn.Module, pruner: PwoAGroupPruner, x: Tensor, *, epochs: int, lr: float = 0.0) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr or 0.02)
    for _ in range(epochs):
        pruner.update_regularizer()
        for _ in range(20):
            optimizer.zero_grad()
            model(x).square().mean().mul(1e-4).backward()
            pruner.regularize(model, None)
            optimizer.step()


class TestChannels:
    def test_the_ratio_is_reached_in_every_group_and_the_classifier_stays(self, small: nn.Module, x: Tensor) -> None:
        pruner = PwoAGroupPruner(small, x, pruning_ratio=0.75)
        assert isinstance(pruner, tp.pruner.BasePruner)
        pruner.step()
        assert widths(small) == {"conv1": 2, "conv2": 2, "conv3": 3, "fc1": 4, "fc2": 3}
        assert small(x).shape == (4, 3)
        assert pruner.untouched == ["fc2"]

    @pytest.mark.parametrize("dual", [0.0, 10.0])
    def test_the_largest_group_norms_stay(self, small: nn.Module, x: Tensor, dual: float) -> None:
        """An oracle for one group: conv3's filters and biases, and fc1's weights that read them; whatever the dual."""
        reads = small.fc1.weight[:, 8 * 16 :].view(16, 12, 16)
        norms = small.conv3.weight.square().sum((1, 2, 3)) + small.conv3.bias.square() + reads.square().sum((0, 2))
        norms += small.bn2.weight[8:].square() + small.bn2.bias[8:].square()
        best = norms.topk(6).indices.sort().values
        expected = small.conv3.weight[best].clone()
        pruner = PwoAGroupPruner(small, x, pruning_ratio=0.5, ignored_layers=["conv1", "fc1"])
        pruner.update_regularizer()
        pruner.target.admm.u["conv3.weight"].normal_().mul_(dual)
        pruner.step()
        assert torch.equal(small.conv3.weight, expected)

    def test_ratios_of_half_and_of_nine_tenths_are_exact(self, x: Tensor) -> None:
        """int(10 * (1 - .9)) is 0, and Torch-Pruning then leaves the layer whole."""
        model = nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(360, 20), nn.Linear(20, 3))
        PwoAGroupPruner(model, x, pruning_ratio=0.9).step()
        assert (model[0].out_channels, model[3].out_features) == (1, 2)

    @pytest.mark.parametrize(("up", "expected"), [(False, 8), (True, 12)])
    def test_round_to(self, x: Tensor, up: bool, expected: int) -> None:
        model = nn.Sequential(nn.Conv2d(1, 20, 3), nn.ReLU(), nn.Flatten(), nn.Linear(720, 3))
        PwoAGroupPruner(model, x, pruning_ratio=0.5, round_to=4, round_up=up).step()
        assert model[0].out_channels == expected

    def test_rounding_down_empties_no_layer(self, x: Tensor) -> None:
        model = nn.Sequential(nn.Conv2d(1, 20, 3), nn.Conv2d(20, 6, 3), nn.Flatten(), nn.Linear(96, 3))
        PwoAGroupPruner(model, x, pruning_ratio=0.9, round_to=8).step()
        assert (model[0].out_channels, model[1].out_channels) == (8, 6)

    def test_the_largest_ratio_holds_where_channels_are_ranked_together(self, small: nn.Module, x: Tensor) -> None:
        with torch.no_grad():
            small.conv3.weight *= 1e-3  # a global ranking would empty it
            small.conv3.bias *= 1e-3
            small.fc1.weight[:, 128:] *= 1e-3
            small.fc1.weight[8:] *= 1e-3
        options = {"global_pruning": True, "max_pruning_ratio": 0.75}
        pruner = PwoAGroupPruner(small, x, pruning_ratio=0.5, **options)
        pruner.step()
        left = widths(small)
        assert left["conv1"] >= 2
        assert left["conv3"] >= 3
        assert left["fc1"] >= 4
        assert left["conv1"] + left["conv3"] + left["fc1"] == (8 + 12 + 16) // 2

    def test_isomorphic_ranks_groups_of_one_structure_together(self, x: Tensor) -> None:
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 8, 3, padding=1), *[nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)]]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 20), nn.Linear(20, 3))
        with torch.no_grad():
            model[1].weight[:6] *= 10
        pruner = PwoAGroupPruner(model, x, pruning_ratio=0.5, isomorphic=True)
        pruner.step()
        convolutions = [model[i].out_channels for i in range(3)]
        assert sum(convolutions) == 12
        assert len(set(convolutions)) > 1
        assert model[5].out_features == 10

    def test_a_ratio_of_ones_own(self, small: nn.Module, x: Tensor) -> None:
        PwoAGroupPruner(small, x, pruning_ratio=0.5, pruning_ratio_dict={small.conv3: 0.75}).step()
        assert widths(small) == {"conv1": 4, "conv2": 4, "conv3": 3, "fc1": 8, "fc2": 3}

    @pytest.mark.parametrize("key", ["conv3", "conv[3]", ("conv3", "fc1")])
    def test_options_can_be_keyed_by_name(self, small: nn.Module, x: Tensor, key: Any) -> None:
        PwoAGroupPruner(small, x, pruning_ratio=0.5, pruning_ratio_dict={key: 0.25}).step()
        assert small.conv1.out_channels == 4
        if isinstance(key, tuple):
            assert small.conv3.out_channels + small.fc1.out_features == (12 + 16) * 3 // 4
        else:
            assert (small.conv3.out_channels, small.fc1.out_features) == (9, 8)

    def test_groups_and_heads_can_be_keyed_by_name(self, small: nn.Module, x: Tensor) -> None:
        pruner = PwoAGroupPruner(small, x, out_channel_groups={"conv3": 3}, num_heads={"fc1": 2})
        assert pruner.out_channel_groups[small.conv3] == 3
        assert pruner.num_heads == {small.fc1: 2}

    def test_iterative_steps_come_to_the_ratio_and_no_further(self, small: nn.Module, x: Tensor) -> None:
        pruner = PwoAGroupPruner(small, x, pruning_ratio=0.75, iterative_steps=3)
        found = []
        for _ in range(3):
            pruner.step()
            small(x)
            found.append(small.conv3.out_channels)
        assert found == [9, 6, 3]
        with pytest.raises(ValueError, match="all 3 iterative_steps are done"):
            pruner.step()

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

    def test_names_patterns_and_classes_can_be_ignored(self, small: nn.Module, x: Tensor) -> None:
        for ignored in (["conv*"], "conv*", nn.Conv2d, [small.conv1, "conv3"]):
            model = copy.deepcopy(small)
            given: Any = ignored
            if isinstance(ignored, list):
                given = [model.conv1 if isinstance(entry, nn.Module) else entry for entry in ignored]
            PwoAGroupPruner(model, x, pruning_ratio=0.5, ignored_layers=given).step()
            assert widths(model) == {"conv1": 8, "conv2": 8, "conv3": 12, "fc1": 8, "fc2": 3}

    def test_removal_is_exact_after_zeroing(self, small: nn.Module, x: Tensor, zeroed: Zeroed) -> None:
        dense = copy.deepcopy(small)
        pruner = PwoAGroupPruner(small, x, pruning_ratio=0.5)
        pruner.step()
        assert torch.allclose(zeroed(dense, pruner, x)(x), small.eval()(x), atol=1e-6)

    def test_mode_and_requires_grad_come_back(self, small: nn.Module, x: Tensor) -> None:
        small.conv2.eval()
        small.fc2.requires_grad_(False)
        pruner = PwoAGroupPruner(small, x, ignored_layers=["fc1"])
        before = state_of(small)
        pruner.step()
        after = state_of(small)
        assert after["modes"] == before["modes"]
        assert after["asked"] == before["asked"]

    def test_nothing_is_shared_between_pruners(self, x: Tensor) -> None:
        grouped = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(128, 3))
        one, two = (PwoAGroupPruner(copy.deepcopy(grouped), x) for _ in range(2))
        for name in ("in_channel_groups", "out_channel_groups", "num_heads"):
            assert getattr(one, name) is not getattr(two, name)
        plain = tp.pruner.BasePruner(nn.Sequential(nn.Conv2d(1, 4, 3)), x, tp.importance.MagnitudeImportance())
        assert not any(module in plain.out_channel_groups for module in one.model.modules())


class Attention(nn.Module):
    def __init__(self, heads: int = 4, width: int = 16) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head((x + self.proj(mixed.transpose(1, 2).reshape(n, tokens, -1))).mean(1))


class TestHeads:
    def test_whole_heads_go(self, x: Tensor) -> None:
        torch.manual_seed(0)
        model = Attention()
        twin = copy.deepcopy(model)

        def adapt(model: nn.Module) -> None:
            model.heads = model.qkv.out_features // 3 // 4

        heads = {"num_heads": {"qkv": 4}, "prune_num_heads": True, "prune_head_dims": False}
        pruner = PwoAGroupPruner(
            model, x, pruning_ratio=0.5, ignored_layers=["embed"], adapt=adapt, head_pruning_ratio=0.5, **heads
        )
        pruner.step()
        assert (model.qkv.out_features, model.proj.in_features, model.heads) == (24, 8, 2)
        assert pruner.num_heads[model.qkv] == 2
        assert model(x).shape == (4, 3)

        again = PwoAGroupPruner(twin, x, ignored_layers=["embed"], adapt=adapt, head_pruning_ratio=0.5, **heads)
        undo = again.target.make_undo()
        again.load_pruning_history(pruner.pruning_history())
        assert (twin.qkv.out_features, twin.heads, again.num_heads) == (24, 2, {twin.qkv: 2})
        assert torch.equal(twin(x), model(x))
        undo()
        assert (twin.qkv.out_features, again.num_heads, again.pruning_history()) == (48, {twin.qkv: 4}, [])

    def test_dimensions_of_each_head_go(self, x: Tensor) -> None:
        torch.manual_seed(0)
        model = Attention()
        pruner = PwoAGroupPruner(model, x, pruning_ratio=0.5, ignored_layers=["embed"], num_heads={model.qkv: 4})
        pruner.step()
        assert (model.qkv.out_features, model.proj.in_features) == (24, 8)
        assert model(x).shape == (4, 3)


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

    def test_the_projection_keeps_whole_groups(self, small: nn.Module, x: Tensor) -> None:
        pruner = PwoAGroupPruner(small, x, pruning_ratio=0.5)
        pruner.update_regularizer()
        z = pruner.target.admm.z
        dead = ~z["conv1.weight"].flatten(1).any(1)
        assert dead.sum() == 4
        # conv1 and conv2 are summed: one choice of channels for both, their BatchNorm and their readers.
        assert not z["conv2.weight"][dead].any()
        assert not z["bn1.weight"][dead].any()
        assert not z["conv3.weight"][:, dead].any()
        assert not z["bn2.weight"][:8][dead].any()
        assert not z["fc1.weight"].view(16, 20, 16)[:, :8][:, dead].any()
        assert z["conv2.weight"][~dead].flatten(1).any(1).all()

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
    def refuses(self, match: str, model: nn.Module, inputs: Any, **fields: Any) -> None:
        before = state_of(model)
        with pytest.raises(ValueError, match=match) as error:
            PwoAGroupPruner(model, inputs, **fields)
        assert "\n" not in str(error.value)
        assert_untouched(model, before)

    @pytest.mark.parametrize("ratio", [0, 1.0, 1.5, -0.1, float("nan"), True])
    def test_ratios_out_of_range(self, small: nn.Module, x: Tensor, ratio: Any) -> None:
        self.refuses("pruning_ratio=.* is outside", small, x, pruning_ratio=ratio)

    @pytest.mark.parametrize(
        ("fields", "match"),
        [
            ({"max_pruning_ratio": 0}, "max_pruning_ratio=0 is outside"),
            ({"iterative_steps": 0}, "iterative_steps=0"),
            ({"round_to": 0}, "round_to=0"),
            (
                {"global_prunning": True},
                "global_prunning: PwoAGroupPruner has no such option; did you mean global_pruning",
            ),
            (
                {"importance": tp.importance.MagnitudeImportance()},
                "importance: PwoAGroupPruner has no such option",
            ),
            ({"ch_sparsity": 0.5}, "ch_sparsity: PwoAGroupPruner has no such option"),
            ({"ignored_layers": ["conv9"]}, "ignored_layers: 'conv9' is not in the model; did you mean conv"),
            ({"ignored_layers": [nn.Conv2d(1, 1, 1)]}, "ignored_layers: Conv2d is not in the model"),
            ({"round_to": 32}, "pruning_ratio=0.5 with round_to=32 leaves every channel"),
            ({"ignored_layers": ["*"]}, "no layer is left to prune"),
            ({"pruning_ratio_dict": {nn.Linear(1, 1): 0.5}}, "pruning_ratio_dict: Linear is not in the model"),
            ({"ignored_layers": 3}, "ignored_layers: 3 is not in the model"),
            ({"ignored_layers": "conv9"}, "ignored_layers: 'conv9' is not in the model"),
            ({"unwrapped_parameters": {"conv1.weight": 0}}, "unwrapped_parameters: give .parameter of the model"),
            ({"iterative_pruning_ratio_scheduler": lambda ratio, steps: [ratio]}, "let it return 2 ratios"),
            ({"admm": {"interval": 3}}, "admm.interval: your own loop decides that"),
        ],
    )
    def test_options(self, small: nn.Module, x: Tensor, fields: dict[str, Any], match: str) -> None:
        self.refuses(match, small, x, **fields)

    @pytest.mark.parametrize(
        ("inputs", "match"),
        [
            (torch.rand(2, 3, 8, 8), "example_inputs: conv1 .* fails on them"),
            (torch.rand(2, 1, 12, 12), "example_inputs: fc1 .* fails on them"),
            ("an image", "example_inputs is a str without a tensor"),
            (torch.full((2, 1, 8, 8), float("nan")), "not finite"),
            (torch.rand(0, 1, 8, 8), "empty"),
            (None, "example_inputs is missing"),
        ],
    )
    def test_inputs(self, small: nn.Module, inputs: Any, match: str) -> None:
        self.refuses(match, small, inputs)

    def test_no_grad(self, small: nn.Module, x: Tensor) -> None:
        with torch.no_grad():
            self.refuses("gradients are off", small, x)

    def test_inference_mode(self, small: nn.Module, x: Tensor) -> None:
        pruner = PwoAGroupPruner(small, x)
        before = state_of(small)
        with torch.inference_mode(), pytest.raises(ValueError, match=r"step: torch.inference_mode is on"):
            pruner.step()
        assert_untouched(small, before)

    def test_another_model_to_regularize(self, small: nn.Module, x: Tensor) -> None:
        pruner = PwoAGroupPruner(small, x)
        pruner.update_regularizer()
        with pytest.raises(ValueError, match="regularize: this SmallNet is not the pruner's model"):
            pruner.regularize(copy.deepcopy(small))
        pruner.regularize(nn.DataParallel(small))

    @pytest.mark.parametrize("admm", [3, "long", [("rho", 1.0)]])
    def test_admm_of_another_kind(self, small: nn.Module, x: Tensor, admm: Any) -> None:
        self.refuses("admm is a .*; give a ADMMConfig", small, x, admm=admm)

    def test_admm_as_a_mapping(self, small: nn.Module, x: Tensor) -> None:
        assert PwoAGroupPruner(small, x, admm={"rho": 2.0}).admm_config == ADMMConfig(rho=2.0)
        self.refuses("admm.rho_: unknown key", small, x, admm={"rho_": 2.0})

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite(self, small: nn.Module, x: Tensor, value: float) -> None:
        pruner = PwoAGroupPruner(small, x)
        with torch.no_grad():
            small.conv2.weight[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match=r"conv2.weight: a weight is not finite; lower the learning rate"):
            pruner.step()
        assert widths(small)["conv2"] == 8
        assert pruner.current_step == 0

    def test_frozen_weights(self, small: nn.Module, x: Tensor) -> None:
        small.conv3.weight.requires_grad_(False)
        self.refuses("conv3.weight has requires_grad=False.*list conv[0-9], whose channels", small, x)
        PwoAGroupPruner(small, x, ignored_layers=["conv1", "conv3"])  # left alone: no matter

    def test_tied_weights(self, small: nn.Module, x: Tensor) -> None:
        model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
        model.append(nn.Flatten()).append(nn.Linear(64, 3))
        model[2].weight = model[1].weight
        self.refuses("1.weight and 2.weight are one tensor", model, x)

    def test_parametrized_weights(self, small: nn.Module, x: Tensor) -> None:
        nn.utils.parametrizations.weight_norm(small.conv2)
        self.refuses("conv2: its weight is computed from others", small, x)

    def test_layers_that_do_not_run(self, small: nn.Module, x: Tensor) -> None:
        small.aux = nn.Linear(8, 3)
        self.refuses("aux: the forward in eval mode does not run it on example_inputs", small, x)
        PwoAGroupPruner(small, x, ignored_layers=["aux"])

    def test_concatenations_that_are_flattened_at_once(self, small: nn.Module, x: Tensor) -> None:
        small.bn2 = nn.Identity()
        self.refuses("Torch-Pruning loses track of channels on the way to", small, x)

    def test_sizes_in_the_code(self, small: nn.Module, x: Tensor) -> None:
        class Hard(nn.Module):
            def __init__(self, by: int) -> None:
                super().__init__()
                self.conv, self.fc, self.by = nn.Conv2d(1, 8, 3), nn.Linear(288, 3), by

            def forward(self, x: Tensor) -> Tensor:
                return self.fc(self.conv(x).view(-1, self.by))

        self.refuses("with fewer channels .* fails .*sizes are written in the code", Hard(288), x[:1])
        self.refuses("with fewer channels .*sizes are written in the code", Hard(288), x)

        def adapt(model: nn.Module) -> None:
            model.by = model.fc.in_features

        model = Hard(288)
        PwoAGroupPruner(model, x, adapt=adapt).step()
        assert model(x).shape == (4, 3)

    @pytest.mark.parametrize(
        ("operation", "match"),
        [
            (lambda x: x.flip(1), "its code shuffles channels"),
            (lambda x: F.group_norm(x, 2), "or computes with all of them together in a function"),
            (lambda x: F.layer_norm(x, (8, 6, 6)), "a normalisation has sizes there"),
            (lambda x: F.batch_norm(x, torch.zeros(8), torch.ones(8)), "a normalisation has sizes there"),
        ],
    )
    def test_operations_across_channels(self, x: Tensor, operation: Callable[[Tensor], Tensor], match: str) -> None:
        self.refuses(f"{match}.*list the layers before in ignored_layers", Between(operation), x)
        PwoAGroupPruner(Between(operation), x, ignored_layers="conv").step()

    def test_what_an_lstm_reads(self, x: Tensor) -> None:
        class Recurrent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two, self.lstm = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 3), nn.LSTM(4, 8, batch_first=True)
                self.fc = nn.Linear(8, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.fc(self.lstm(self.two(self.one(x)).flatten(2).transpose(1, 2))[0][:, -1])

        self.refuses("lstm: an LSTM that reads fewer channels is not supported; list two, which it", Recurrent(), x)
        model = Recurrent()
        PwoAGroupPruner(model, x, ignored_layers="two").step()
        assert (model.one.out_channels, model.two.out_channels) == (3, 4)

    def test_what_torch_pruning_cannot_group(self, x: Tensor) -> None:
        class Gated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.gru = nn.Conv2d(1, 16, 3, padding=1), nn.GRU(16, 16, batch_first=True)
                self.head = nn.Linear(16, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.gru(self.conv(x).relu().mean(3).transpose(1, 2))[0][:, -1])

        said = "model: Torch-Pruning cannot tell which channels go together .* as with a GRU"
        self.refuses(said, Gated(), x)
        model = Gated()
        mask = torch.ones_like(model.conv.weight)
        mask[:4] = 0
        with pytest.raises(ValueError, match=said):
            speedup(model, {"conv": {"weight": mask}}, x)

    @pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: torch.jit.script(m)])
    def test_wrapped_models(self, x: Tensor, wrap: Callable[[nn.Module], Any]) -> None:
        with pytest.raises(ValueError, match="model is"):
            PwoAGroupPruner(wrap(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 3))), x)

    @pytest.mark.parametrize(
        ("interactive", "at", "error"),
        [
            (False, 2, ValueError),
            (False, 2, KeyboardInterrupt),
            (True, 2, ValueError),
            (True, 3, ValueError),
            (True, 3, KeyboardInterrupt),
        ],
    )
    def test_a_failing_step_leaves_the_model(
        self, small: nn.Module, x: Tensor, at: int, error: type[BaseException], interactive: bool
    ) -> None:
        """At the removal; interactively, when all groups are tried out, and at a group's own removal."""
        calls: list[nn.Module] = []
        small.sizes = [8]

        def adapt(model: nn.Module) -> None:
            calls.append(model)
            if len(calls) == at:
                model.fc2 = nn.Linear(1, 1)
                model.sizes[0] = 4
                raise error

        pruner = PwoAGroupPruner(small, x, iterative_steps=2, adapt=adapt)
        pruner.update_regularizer()
        before, admm = state_of(small), pruner.target.admm
        with pytest.raises(error):
            [group.prune() for group in pruner.step(interactive) or ()]
        assert_untouched(small, before)
        assert small.sizes == [8]
        assert pruner.current_step == (interactive and at == 3)
        assert not pruner.removals
        assert not pruner.student_channels
        assert pruner.target.admm is (None if interactive and at == 3 else admm)  # that step is taken
        pruner.step()
        assert widths(small)["conv3"] == (6 if interactive and at == 3 else 9)

    def test_taking_out_other_channels_is_undone(
        self, small: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As of a Torch-Pruning that removes something else at the second look."""
        pruner = PwoAGroupPruner(small, x)
        before = state_of(small)
        graph, look = pruner.DG, pruner.DG.get_pruning_group
        monkeypatch.setattr(graph, "get_pruning_group", lambda m, fn, idxs: look(m, fn, [i ^ 1 for i in idxs]))
        with pytest.raises(ValueError, match="Torch-Pruning removes other channels than the projection has at 0"):
            pruner.step()
        assert_untouched(small, before)
        pruner.step()
        assert small(x).shape == (4, 3)


class Between(nn.Module):
    """An operation between two convolutions."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.next, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(128, 3)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.next(self.operation(self.conv(x))).flatten(1))


def test_a_model_that_is_random_in_eval_mode(x: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    model = Between(lambda y: y + 0.3 * torch.randn_like(y))
    PwoAGroupPruner(model, x).step()
    assert widths(model) == {"conv": 4, "next": 4, "fc": 3}
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert "the model is random in eval mode" in said[0]


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
