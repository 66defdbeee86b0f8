"""The backend of runs that remove channels."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import make_images
from torch import nn

from pwoa_plugin import PwoAConfig
from pwoa_plugin.backends import backend_of
from pwoa_plugin.runs.folder import RunFolder
from pwoa_plugin.torch_pruning.backend import ChannelBackend


def test_what_is_built_and_saved_is_loaded(small: nn.Module, tmp_path: Path) -> None:
    config = PwoAConfig(
        sparsity=0.5, granularity="structured", train_loader=make_images(64), epochs=1, eps=0.1, progress=False
    )
    backend, folder = backend_of(config), RunFolder(tmp_path)
    assert isinstance(backend, ChannelBackend)
    fresh = type(small)().eval()
    trainer = backend.build(small, config)
    trainer.fit()
    assert not backend.is_saved(folder)
    saved = backend.save(trainer, folder)
    assert backend.is_saved(folder)
    assert saved.kept == {name: small.get_submodule(name).weight.numel() for name in trainer.target.layers}
    assert saved.cost is not None
    assert saved.cost["pruned"]["parameters"] == sum(parameter.numel() for parameter in small.parameters())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(backend.load(fresh, folder)(x), small.eval()(x))
