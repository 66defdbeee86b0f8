"""Toolkits' backends: built, saved, loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyNet
from torch import Tensor

from pwoa_plugin import PwoAConfig
from pwoa_plugin._files import write_tensors
from pwoa_plugin.backends import BACKENDS, backend_of
from pwoa_plugin.method.sparsity import SPARSITY_SETS
from pwoa_plugin.runs.folder import RunFolder

Pair = tuple[Tensor, Tensor]


def test_every_sparsity_set_has_a_backend() -> None:
    assert {kind.backend for kind in SPARSITY_SETS.values()} == BACKENDS.keys()


@pytest.mark.parametrize("granularity", ["unstructured", "structured"])
def test_what_is_saved_is_loaded(trained: TinyNet, images: Pair, tmp_path: Path, granularity: str) -> None:
    fresh, folder = copy.deepcopy(trained), RunFolder(tmp_path)
    fields: dict[str, Any] = {"sparsity": 0.5, "train_loader": images, "epochs": 2, "eps": 0.1, "progress": False}
    config = PwoAConfig(granularity=granularity, **fields)
    backend = backend_of(config)
    trainer = backend.build(trained, config)
    trainer.fit()
    assert not backend.is_saved(folder)
    saved = backend.save(trainer, folder)
    assert backend.is_saved(folder)
    assert saved.kept.keys() == trainer.target.layers.keys()
    assert (saved.cost is None) == (granularity == "unstructured")
    loaded = backend.load(fresh, folder).eval()
    torch.testing.assert_close(loaded(images[0]), trained.eval()(images[0]))


def test_weights_that_contradict_the_masks_are_refused(trained: TinyNet, images: Pair, tmp_path: Path) -> None:
    dense, folder = copy.deepcopy(trained), RunFolder(tmp_path)
    config = PwoAConfig(sparsity=0.5, train_loader=images, epochs=1, eps=0.1, progress=False)
    backend = backend_of(config)
    trainer = backend.build(trained, config)
    trainer.fit()
    backend.save(trainer, folder)
    write_tensors(folder.pruned, dense.state_dict(), {"format": "pt"})
    with pytest.raises(ValueError, match=r"conv.weight is not 0 where masks.safetensors prunes it; prune again"):
        backend.load(dense, folder)
