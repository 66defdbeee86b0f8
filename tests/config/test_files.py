"""Configs in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pwoa_plugin import PwoAConfig
from pwoa_plugin.config import ConfigError
from pwoa_plugin.errors import InputError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sparsity: [", "line 1: expected"),
        ("- sparsity", "holds no mapping of fields"),
        ("", "holds no mapping of fields"),
        ("1: 2", "line 1: key 1 is not text"),
        ("sparsity: 7", "sparsity=7.0 is outside"),
        ("sparsity: 0.5\nadm:\n  epochs: 1", "adm: unknown key; did you mean admm"),
        ("sparsity: 0.5\ntrain_loader: 5", "train_loader: a file names its images under data"),
        ("sparsity: 0.5\nmodel: {arch: 'os:system', checkpoint: x}", "model.arch='os:system' names code"),
        ("sparsity: " + "5" * 2_000_000, "has 2,000,010 bytes, more than 100,000"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "prune.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"^{path}: {said}") as caught:
        PwoAConfig.from_yaml(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told_with_the_near_name(tmp_path: Path) -> None:
    (tmp_path / "prune.yaml").write_text("sparsity: 0.5")
    with pytest.raises(InputError, match=r"prune\.yml: no such file; did you mean prune\.yaml\?$"):
        PwoAConfig.from_yaml(tmp_path / "prune.yml")


def test_changes_by_dotted_name(tmp_path: Path) -> None:
    path = tmp_path / "prune.yaml"
    path.write_text("sparsity: 0.5\nadmm: {epochs: 2, rho: 0.5}\n")
    changes = {"admm.epochs": 0, "seed": 7, "admm.optimizer.name": "sgd", "eps": "8/255"}
    config = PwoAConfig.from_yaml(path, changes=changes)
    assert (config.admm.epochs, config.admm.rho, config.seed, config.eps) == (0, 0.5, 7, 8 / 255)
    assert config.admm.optimizer is not None
    with pytest.raises(ConfigError, match=r"admm\.epoch: unknown key; did you mean epochs"):
        PwoAConfig.from_yaml(path, changes={"admm.epoch": 0})
    with pytest.raises(ConfigError, match=r"^.*: seed="):
        PwoAConfig.from_yaml(path, changes={"seed.x": 0})
