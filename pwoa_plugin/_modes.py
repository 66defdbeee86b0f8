"""Training and eval mode of submodules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore every submodule's mode (``training``) on leaving, also after an error."""
    # A frozen TorchScript module has no mode.
    modes = {module: module.training for module in model.modules() if hasattr(module, "training")}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def train_mode(model: nn.Module) -> None:
    """``model.train()``, except for frozen BatchNorm: in eval mode, with parameters that need no gradient."""
    frozen = [module for module in model.modules() if isinstance(module, _BatchNorm) and _is_frozen(module)]
    model.train()
    for module in frozen:
        module.eval()


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not module.training and not any(parameter.requires_grad for parameter in parameters)
