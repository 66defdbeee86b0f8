"""config_list, in each of NNI's forms, against what NNI itself selects."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nni.compression.pruning import LevelPruner
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from pwoa_plugin.nni.config_list import read_config_list

CONV, LINEAR = {"op_types": ["Conv2d"], "sparse_ratio": 0.5}, {"op_types": ["Linear"], "sparse_ratio": 0.75}

SELECTIONS: dict[str, list[dict[str, Any]]] = {
    "types": [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5}],
    "names": [{"op_names": ["fc1"], "sparse_ratio": 0.5}],
    "a regular expression": [{"op_names_re": ["fc.*"], "sparse_ratio": 0.5}],
    "names of a type": [{"op_names": ["conv", "fc1"], "op_types": ["Linear"], "sparse_ratio": 0.5}],
    "without a name": [{"op_types": ["Linear"], "exclude_op_names": ["fc2"], "sparse_ratio": 0.5}],
    "without a type": [{"op_names_re": ["(conv|fc)"], "exclude_op_types": ["Conv2d"], "sparse_ratio": 0.5}],
    "without an expression": [{"op_types": ["Conv2d", "Linear"], "exclude_op_names_re": ["f"], "sparse_ratio": 0.5}],
    "weights alone": [{"op_types": ["Linear"], "target_names": ["weight"], "sparse_ratio": 0.5}],
    "settings by target": [{"op_types": ["Linear"], "target_settings": {"weight": {"sparse_ratio": 0.5}}}],
    "several entries": [CONV, LINEAR],
    "the first wins": [{"op_names": ["fc2"], "sparse_ratio": 0.25}, LINEAR],
    "a ratio for each layer": [{"op_names": [n], "sparse_ratio": r} for n, r in (("conv", 0.5), ("fc1", 0.9))],
    "legacy": [{"op_types": ["Linear"], "sparsity_per_layer": 0.5}, {"op_names": ["fc2"], "exclude": True}],
}


@pytest.mark.parametrize("config_list", SELECTIONS.values(), ids=SELECTIONS.keys())
def test_the_layers_and_ratios_are_nnis(trained: nn.Module, config_list: list[dict[str, Any]]) -> None:
    given = copy.deepcopy(config_list)
    configs, targets = read_config_list(trained, config_list)
    assert config_list == given
    level = LevelPruner(trained, configs)
    _, masks = level.compress()
    level.unwrap_model()
    pruned = {n: float((m["weight"] == 0).float().mean()) for n, m in masks.items()}
    assert {n: t.ratio for n, t in targets.items()} == pytest.approx(pruned, abs=0.01)
    assert {n: 1 - t.allocation.density for n, t in targets.items()} == pytest.approx(pruned, abs=0.03)
    assert list(targets) == [n for n in ("conv", "fc1", "fc2") if n in pruned]


def test_each_entry_has_a_total_of_its_own(trained: nn.Module) -> None:
    one = [{"op_names": ["conv", "fc1", "fc2"], "sparse_ratio": 0.75}]
    two = [{"op_names": ["conv"], "sparse_ratio": 0.75}, {"op_names": ["fc1", "fc2"], "sparse_ratio": 0.75}]
    together, apart = (read_config_list(trained, entries, "lamp")[1] for entries in (one, two))
    assert apart["conv"].allocation.density == pytest.approx(0.25, abs=0.01)
    assert together["conv"].allocation.density > 0.5
    for targets, groups in ((together, [["conv", "fc1", "fc2"]]), (apart, [["conv"], ["fc1", "fc2"]])):
        for group in groups:
            kept = sum(targets[name].allocation.keep for name in group)
            assert kept == pytest.approx(0.25 * sum(targets[name].allocation.weights for name in group), abs=1)


def test_an_entry_names_its_own_rule(trained: nn.Module) -> None:
    linear = {"op_types": ["Linear"], "sparse_ratio": 0.75}
    configs, targets = read_config_list(trained, [CONV, linear | {"allocation": "uniform"}], "lamp")
    assert configs == [CONV, linear]  # NNI's schema knows no such key
    assert targets["fc1"].allocation.density == pytest.approx(0.25, abs=0.01)
    assert targets["fc2"].allocation.density == pytest.approx(0.25, abs=0.02)
    _, targets = read_config_list(trained, [linear | {"allocation": "lamp"}])
    assert targets["fc2"].allocation.density > 0.4
    legacy = [{"op_types": ["Linear"], "sparsity_per_layer": 0.75}]
    assert read_config_list(trained, legacy, "lamp")[1]["fc2"].allocation.density == pytest.approx(0.25, abs=0.02)


def test_patterns_and_names_that_match_nothing_are_logged(trained: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    """NNI passes over it in silence."""
    entry = {"op_types": ["Linear", "Liner"], "op_names_re": ["fc", "head"], "sparse_ratio": 0.5}
    entry |= {"exclude_op_names": ["fc3"], "exclude_op_types": ["Conv3d"], "exclude_op_names_re": ["conv", "bn.*"]}
    assert list(read_config_list(trained, [entry])[1]) == ["fc1", "fc2"]
    assert [record.message for record in caplog.records] == [
        f"config_list[0]: {key}: the model has no module {given!r}"
        for key, given in (
            ("exclude_op_names", "fc3"),
            ("exclude_op_names_re", "bn.*"),
            ("exclude_op_types", "Conv3d"),
            ("op_names_re", "head"),
            ("op_types", "Liner"),
        )
    ]


def test_n_of_m_needs_no_ratio(trained: nn.Module) -> None:
    _, targets = read_config_list(trained, [{"op_names": ["fc1"], "granularity": "1:4"}])
    assert targets["fc1"].ratio == 0.75
    mask = targets["fc1"].mask(trained.fc1.weight.detach())
    assert mask.view(16, -1, 4).sum(-1).eq(1).all()


def test_a_share_of_the_sparsity(trained: nn.Module) -> None:
    _, targets = read_config_list(trained, [LINEAR])
    weight = trained.fc1.weight.detach()
    gone = [int((~targets["fc1"].mask(weight, share)).sum()) for share in (0.0, 0.25, 0.5, 1.0)]
    all_of_it = targets["fc1"].allocation.groups - targets["fc1"].allocation.keep
    assert gone == [0, round(all_of_it / 4), round(all_of_it / 2), all_of_it]
    halfway, whole = targets["fc1"].mask(weight, 0.5), targets["fc1"].mask(weight)
    assert not (whole & ~halfway).any()  # nested, as magnitudes are


class KeywordOnly(nn.Linear):
    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        return super().forward(x) * scale


def odd_model() -> nn.Module:
    """Each member is something that cannot be pruned by NNI's wrappers."""
    model = nn.Module()
    model.plain = nn.Linear(4, 4)
    model.again = model.plain
    model.tied_a, model.tied_b = nn.Linear(4, 4), nn.Linear(4, 4)
    model.tied_b.weight = model.tied_a.weight
    model.keyword = KeywordOnly(4, 4)
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


HALF = {"sparse_ratio": 0.5}
BAD: dict[str, tuple[Any, str]] = {
    "a dict": ({"op_names": ["fc1"]}, "^config_list: give a PwoAConfig, or a list of NNI's dicts"),
    "nothing": ([], "^config_list: give a PwoAConfig, or a list of NNI's dicts"),
    "selects nothing": ([LINEAR, {"op_types": ["Conv3d"], **HALF}], r"config_list\[1\] selects no layer .*Conv3d"),
    "excludes all": ([{"op_types": ["Conv2d"], "exclude_op_names": ["conv"], **HALF}], "selects no layer"),
    "a name that is not there": ([{"op_names": ["fc_1"], **HALF}], "no module 'fc_1'; did you mean fc1"),
    "a broken expression": ([{"op_names_re": ["("], **HALF}], "not a regular expression"),
    "no ratio": ([{"op_names": ["fc1"]}], r"config_list\[0\] gives no weight a sparse_ratio"),
    "biases alone": ([{"op_names": ["fc1"], "target_names": ["bias"], **HALF}], "gives no weight a sparse_ratio"),
    "no such target": ([{"op_names": ["fc1"], "target_names": ["weigth"], **HALF}], "no target 'weigth'"),
    "an activation": (
        [{"op_names": ["fc1"], "target_names": ["_output_"], "target_settings": {"_output_": HALF}}],
        "PwoA prunes parameters, and _output_0",
    ),
    "an integer": ([{"op_names": ["fc1"], "sparse_ratio": 1}], r"config_list\[0\]: .*float"),
    "an unknown key": ([{"op_names": ["fc1"], "sparseness": 0.5}], r"config_list\[0\]: .*sparseness"),
    "an unknown rule": ([{"op_names": ["fc1"], "allocation": "best", **HALF}], "allocation='best' is unknown"),
    "no rule": ([{"op_names": ["fc1"], "allocation": ["lamp"], **HALF}], r"allocation=\['lamp'\] is unknown"),
    "half legacy": ([LINEAR, {"op_names": ["fc2"], "exclude": True}], r"config_list\[1\]: .*exclude"),
    "an unknown set": ([{"op_names": ["fc1"], "granularity": "rows", **HALF}], "granularity='rows' is unknown"),
    "fine-grained": ([{"op_names": ["fc1"], "granularity": "fine-grained", **HALF}], "fine-grained"),
    "a contradicting n:m": ([{"op_names": ["fc1"], "granularity": "2:4", "sparse_ratio": 0.9}], "contradicts gran"),
    "too much": ([{"op_names": ["fc1"], "sparse_ratio": 0.9999}], r"config_list\[0\]: .*would empty a layer"),
    "a threshold": ([{"op_names": ["fc1"], "sparse_threshold": 0.1}], "sparse_threshold is not supported"),
    "a global group": ([LINEAR | {"global_group_id": 1}], "'allocation': 'global'"),
    "NNI 2's total": ([{"op_types": ["Linear"], "total_sparsity": 0.5}], "'allocation': 'global'"),
    "a bypass": ([LINEAR | {"apply_method": "bypass"}], "apply_method='bypass' is not supported"),
    "two that name a layer": (
        [{"op_names": ["fc1", "fc2"], **HALF}, {"op_names": ["fc1", "conv"], "sparse_ratio": 0.75}],
        r"config_list\[0\] and config_list\[1\] contradict each other: both name 'fc1'",
    ),
    "the special one last": ([LINEAR, {"op_names": ["fc2"], "sparse_ratio": 0.25}], "the first entry wins; put it be"),
    "two granularities": ([LINEAR, LINEAR | {"granularity": "out_channel"}], r"config_list\[1\] contradicts"),
    "two rules": ([LINEAR, LINEAR | {"allocation": "lamp"}], r"config_list\[1\] contradicts config_list\[0\]"),
}


@pytest.mark.parametrize(("config_list", "said"), BAD.values(), ids=BAD.keys())
def test_bad_entries_are_refused_in_one_line(trained: nn.Module, config_list: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        read_config_list(trained, config_list)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("again", "'again' is the module 'plain' again"),
        ("tied_b", "tied_a.weight and tied_b.weight are one parameter"),
        ("keyword", r"keyword-only arguments \(scale\)"),
        ("norm", "'norm', a LayerNorm, in which NNI finds nothing to prune"),
        ("normed", "computed from others"),
        ("frozen", "requires_grad=False"),
        ("transposed", "a transposed convolution can be pruned with granularity='unstructured' only"),
    ],
)
def test_layers_that_nnis_wrappers_would_spoil(name: str, said: str) -> None:
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
