"""Training and eval mode of submodules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import InputError


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


@contextmanager
def single_image_explained() -> Iterator[None]:
    """Explains torch's error for a batch of one image, of which BatchNorm has no variance in training mode."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "a batch (the last one, say) has one image, of which a BatchNorm has no variance in training mode; set "
            "drop_last=True in the DataLoader, or another batch_size"
        ) from error
