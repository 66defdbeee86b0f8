"""What is refused before a model is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_pruning as tp
from pruned_networks import assert_refused, assert_untouched, state_of, widths
from torch import Tensor, nn

from pwoa_plugin import PwoAConfig
from pwoa_plugin.torch_pruning import PwoAGroupPruner


class TestRefused:
    @pytest.mark.parametrize("ratio", [1.0, 1.5, -0.1, float("nan"), True])
    def test_ratios_out_of_range(self, small: nn.Module, x: Tensor, ratio: Any) -> None:
        assert_refused("pruning_ratio=.* is outside", small, x, pruning_ratio=ratio)

    @pytest.mark.parametrize(
        ("fields", "match"),
        [
            ({"pruning_ratio": 0}, "pruning_ratio=0 leaves every channel"),
            ({"max_pruning_ratio": 0}, "leaves every channel"),
            ({"pruning_ratio_dict": {"conv3": 50}}, "pruning_ratio_dict=50 is outside"),
            ({"head_pruning_ratio": 1.5}, "head_pruning_ratio=1.5 is outside"),
            ({"ignored_layers": ["conv9"]}, "ignored_layers: 'conv9' is not in the model; did you mean conv"),
            ({"ignored_layers": [nn.Conv2d(1, 1, 1)]}, r"ignored_layers: Conv2d\(1, 1, .* is not in the model"),
            ({"round_to": 32}, "pruning_ratio=0.5 with round_to=32 leaves every channel"),
            ({"ignored_layers": ["*"]}, "no layer is left to prune"),
            (
                {"pruning_ratio_dict": {nn.Linear(1, 1): 0.5}},
                r"pruning_ratio_dict: Linear\(in.* is not in the model",
            ),
            ({"ignored_layers": 3}, "ignored_layers: 3 is not in the model"),
            ({"ignored_layers": "conv9"}, "ignored_layers: 'conv9' is not in the model"),
            (
                {"unwrapped_parameters": {"conv1.wight": 0}},
                "unwrapped_parameters: give .parameter of the model, or its name",
            ),
            ({"iterative_pruning_ratio_scheduler": lambda ratio, steps: [ratio]}, "let it return 2 ratios"),
            ({"admm": {"interval": 3}}, "admm.interval: your own loop decides that"),
        ],
    )
    def test_options(self, small: nn.Module, x: Tensor, fields: dict[str, Any], match: str) -> None:
        assert_refused(match, small, x, **fields)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("global_prunning", True, "unexpected keyword argument"),
            ("importance", tp.importance.MagnitudeImportance(), "multiple values for argument"),
            ("allocation", "lamp", "unexpected keyword argument"),
        ],
    )
    def test_unknown_options(self, small: nn.Module, x: Tensor, name: str, value: Any, message: str) -> None:
        before = state_of(small)
        with pytest.raises(TypeError, match=f"{message} '{name}'"):
            PwoAGroupPruner(small, x, **{name: value})
        assert_untouched(small, before)

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
        assert_refused("conv3.weight has requires_grad=False.*list conv[0-9], whose channels", small, x)
        PwoAGroupPruner(small, x, ignored_layers=["conv1", "conv3"])  # left alone: no matter

    def test_tied_weights(self, small: nn.Module, x: Tensor) -> None:
        model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
        model.append(nn.Flatten()).append(nn.Linear(64, 3))
        model[2].weight = model[1].weight
        assert_refused("1.weight and 2.weight are one tensor", model, x)

    def test_parametrized_weights(self, small: nn.Module, x: Tensor) -> None:
        nn.utils.parametrizations.weight_norm(small.conv2)
        assert_refused("conv2: its weight is computed from others", small, x)

    def test_layers_that_do_not_run(self, small: nn.Module, x: Tensor) -> None:
        small.aux = nn.Linear(8, 3)
        assert_refused("aux: the forward in eval mode does not run it on example_inputs", small, x)
        PwoAGroupPruner(small, x, ignored_layers=["aux"])

    def test_what_an_lstm_reads(self, x: Tensor) -> None:
        class Recurrent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two, self.lstm = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 3), nn.LSTM(4, 8, batch_first=True)
                self.fc = nn.Linear(8, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.fc(self.lstm(self.two(self.one(x)).flatten(2).transpose(1, 2))[0][:, -1])

        assert_refused("lstm: an LSTM that reads fewer channels is not supported; list two, which it", Recurrent(), x)
        model = Recurrent()
        PwoAGroupPruner(model, x, ignored_layers="two").step()
        assert (model.one.out_channels, model.two.out_channels) == (3, 4)

    def test_concatenations_that_are_flattened_at_once(self, small: nn.Module, x: Tensor) -> None:
        small.bn2 = nn.Identity()
        assert_refused("Torch-Pruning loses track of channels on the way to", small, x)


@pytest.mark.parametrize("config", [{"sparsity": 0.5}, "config.yaml", PwoAConfig])
def test_what_is_no_config_is_refused(config: Any, small: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^config=.* is no config; give a PwoAConfig"):
        PwoAGroupPruner(small, config=config)
