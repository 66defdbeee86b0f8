"""The entries of a config_list, each by itself."""

from __future__ import annotations

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
