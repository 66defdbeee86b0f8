"""Which channels go: ratios, rounding, ranking, heads."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch_pruning as tp
from pruned_networks import widths
from torch import Tensor, nn

from pwoa_plugin.torch_pruning import PwoAGroupPruner


class TestRatios:
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

    def test_names_patterns_and_classes_can_be_ignored(self, small: nn.Module, x: Tensor) -> None:
        for ignored in (["conv*"], "conv*", nn.Conv2d, [small.conv1, "conv3"]):
            model = copy.deepcopy(small)
            given: Any = ignored
            if isinstance(ignored, list):
                given = [model.conv1 if isinstance(entry, nn.Module) else entry for entry in ignored]
            PwoAGroupPruner(model, x, pruning_ratio=0.5, ignored_layers=given).step()
            assert widths(model) == {"conv1": 8, "conv2": 8, "conv3": 12, "fc1": 8, "fc2": 3}

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


class TestProjection:
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
