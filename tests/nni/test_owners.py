"""Who prunes a parameter, and which parameters nobody can."""

from __future__ import annotations

import pytest
from nni.compression.pruning import LevelPruner
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from pwoa_plugin.nni.config_list import read_config_list

LINEAR = {"op_types": ["Linear"], "sparse_ratio": 0.75}


def odd_model() -> nn.Module:
    """Each member is something that cannot be pruned by NNI's wrappers."""
    model = nn.Module()
    model.plain = nn.Linear(4, 4)
    model.again = model.plain
    model.tied_a, model.tied_b = nn.Linear(4, 4), nn.Linear(4, 4)
    model.tied_b.weight = model.tied_a.weight
    model.norm = nn.LayerNorm(4)
    model.normed = weight_norm(nn.Linear(4, 4))
    model.frozen = nn.Linear(4, 4).requires_grad_(False)
    model.transposed = nn.ConvTranspose2d(4, 4, 2)
    return model


def test_a_module_under_two_names_is_pruned_once() -> None:
    model = odd_model()
    entry = {"op_types": ["Linear"], "exclude_op_names_re": ["tied", "frozen"], "sparse_ratio": 0.5}
    configs, targets = read_config_list(model, [entry])
    assert list(targets) == ["plain"]
    level = LevelPruner(model, configs)  # NNI alone would fail on the second name
    level.unwrap_model()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("again", "'again' is the module 'plain' again"),
        ("tied_b", "tied_a.weight and tied_b.weight are one parameter"),
        ("norm", "'norm', a LayerNorm, in which NNI finds nothing to prune"),
        ("normed", "computed from others"),
        ("frozen", "requires_grad=False"),
        ("transposed", "a transposed convolution can be pruned with granularity='unstructured' only"),
    ],
)
def test_layers_that_nnis_wrappers_would_break(name: str, said: str) -> None:
    entry = {"op_names": [name], "sparse_ratio": 0.5, "granularity": "out_channel"}
    with pytest.raises(ValueError, match=said):
        read_config_list(odd_model(), [entry])


def test_a_repeated_entry_is_not_a_contradiction(trained: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    _, targets = read_config_list(trained, [LINEAR, dict(LINEAR)])
    assert list(targets) == ["fc1", "fc2"]
    assert "config_list[1] repeats" in caplog.text


def test_another_compressor_keeps_what_it_prunes(trained: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    level = LevelPruner(trained, [{"op_names": ["fc1"], "sparse_ratio": 0.5}])
    level.unwrap_model()
    _, targets = read_config_list(trained, [LINEAR], wrappers=level._module_wrappers)
    assert list(targets) == ["fc2"]
    assert "another compressor already prunes weight of fc1" in caplog.text
    with pytest.raises(ValueError, match="another compressor already prunes all its layers"):
        read_config_list(trained, [{"op_names": ["fc1"], "sparse_ratio": 0.9}], wrappers=level._module_wrappers)
