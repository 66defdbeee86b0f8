"""The entries of a config_list, each by itself."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from pwoa_plugin.nni.config_list import read_config_list


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
    budget = targets["fc1"].budget
    assert budget.sparsity == 0.75
    mask = budget.masks({"fc1": trained.fc1.weight.detach()})["fc1"]
    assert mask.view(16, -1, 4).sum(-1).eq(1).all()


HALF = {"op_types": ["Linear"], "sparse_ratio": 0.5}


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        (
            [HALF, {"op_names": ["fc2"], "exclude": True}],
            r"config_list\[1\]: 'exclude' is a key of NNI 2; .*exclude_op_n",
        ),
        ([HALF, {"op_names": ["fc2"], "sparsity": 0.5}], "'sparsity' is a key of NNI 2; write sparse_ratio"),
        ([HALF, {"op_names": ["fc2"], "sparsity_per_layer": 0.5}], "'sparsity_per_layer' is .*write sparse_ratio"),
        ([HALF, {"op_names": ["fc2"], "total_sparsity": 0.5}], "total_sparsity is not supported; give sparse_ratio"),
        ([{"op_types": ["Linear"], "target_settings": {"weight": {"sparsity": 0.5}}}], "'sparsity' is a key of NNI 2"),
        ([{"op_types": ["Linear"], "target_settings": {"sparse_ratio": 0.5}}], "target_settings=.*; write {'weight'"),
        ([{"op_types": ["Linear"], "target_settings": ["weight"]}], "target_settings=.*; write {'weight'"),
        (
            [{"op_partial_names": ["fc"], "sparse_ratio": 0.5}],
            "'op_partial_names' is a key of NNI 2; write op_names_re",
        ),
        ([{**HALF, "exclude_op_name": ["fc2"]}], "write exclude_op_names"),
        ([{"op_types": ["Linear"], "sparse_rate": 0.5}], "Wrong key 'sparse_rate' .*; did you mean sparse_ratio"),
        ([{**HALF, "exclude": True}], "every entry has 'exclude', so nothing is pruned"),
        (["Linear"], r"config_list\[0\]: 'Linear' is no dict"),
    ],
)
def test_keys_of_nni_2_and_wrong_ones(trained: nn.Module, entries: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match) as refused:
        read_config_list(trained, entries)
    assert "\n" not in str(refused.value)


def test_a_whole_list_of_nni_2s(trained: nn.Module) -> None:
    """NNI translates a list whose first entry has a key of NNI 2."""
    entries = [{"op_types": ["Linear"], "sparsity": 0.5}, {"op_names": ["fc2"], "exclude": True}]
    assert "fc2" not in read_config_list(trained, entries)[1]
