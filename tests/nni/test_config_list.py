"""config_list, in each of NNI's forms, against what NNI itself selects."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from nni.compression.pruning import LevelPruner
from torch import nn

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
    assert {n: t.budget.sparsity for n, t in targets.items()} == pytest.approx(pruned, abs=0.01)
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


HALF = {"sparse_ratio": 0.5}
BAD: dict[str, tuple[Any, str]] = {
    "a dict": ({"op_names": ["fc1"]}, "^config_list: give a PwoAConfig, or a list of NNI's dicts"),
    "nothing": ([], "^config_list: give a PwoAConfig, or a list of NNI's dicts"),
    "selects nothing": ([LINEAR, {"op_types": ["Conv3d"], **HALF}], r"config_list\[1\] selects no layer .*Conv3d"),
    "excludes all": ([{"op_types": ["Conv2d"], "exclude_op_names": ["conv"], **HALF}], "selects no layer"),
    "a name that is not there": ([{"op_names": ["fc_1"], **HALF}], "no module 'fc_1'; did you mean fc1"),
    "no ratio": ([{"op_names": ["fc1"]}], r"config_list\[0\] gives no weight a sparse_ratio"),
    "biases alone": ([{"op_names": ["fc1"], "target_names": ["bias"], **HALF}], "gives no weight a sparse_ratio"),
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
