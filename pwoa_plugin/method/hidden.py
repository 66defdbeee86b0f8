"""Hidden layers: which ones HSIC looks at, and how their activations are read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from .._modes import modes_kept
from .._weights import is_weighted
from ..errors import InputError

_MOST = 8


class NetworkWrapper(nn.Module):
    """A wrapper around a network, its ``module``, as ``DistributedDataParallel`` is; layers have the names inside."""

    module: nn.Module


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside ``DistributedDataParallel``, ``DataParallel`` and `NetworkWrapper`."""
    while isinstance(model, (DataParallel, DistributedDataParallel, NetworkWrapper)):
        model = model.module
    return model


def check_readable(model: nn.Module) -> None:
    """Whether hooks see what runs inside a network.

    Raises:
        ValueError: it is compiled, or spread over several devices.
    """
    # torch.compile does not look at hooks that come later, and DataParallel's copies share theirs.
    if any(hasattr(module, "_orig_mod") for module in model.modules()):
        raise InputError(
            "the model is compiled, and its hidden layers cannot be read; give the module that went into torch.compile "
            "(model._orig_mod)"
        )
    if isinstance(model, DataParallel) and len(model.device_ids) > 1:
        raise InputError(
            f"the model is in DataParallel over {len(model.device_ids)} devices, where a hidden layer is in pieces; "
            "use DistributedDataParallel, or one device"
        )


@contextmanager
def read_hidden(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Read the *inputs* of ``layers`` at every forward of ``model``, while the context lasts.

    Args:
        model: any module (see `unwrapped`).
        layers: names of its submodules. The input of a layer is what the layer before made of it
            *after* its activation, also where that is a function and no module.

    Yields:
        ``{name: input}``, filled anew by each forward. A module that runs more than once in a forward
        leaves the last of its inputs. The hooks come off also when the body raises.
    """
    seen: dict[str, Tensor] = {}
    handles: list[RemovableHandle] = []

    def reader(name: str) -> object:
        def read(module: nn.Module, args: tuple[object, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                seen[name] = args[0]

        return read

    model = unwrapped(model)
    try:
        for name in layers:
            handles.append(model.get_submodule(name).register_forward_pre_hook(reader(name)))  # type: ignore[arg-type]
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def check_names(model: nn.Module, names: Iterable[str]) -> None:
    """Whether these are names of the model's modules.

    Raises:
        ValueError: one is not.
    """
    modules = dict(unwrapped(model).named_modules())
    for name in names:
        if name not in modules or not name:
            close = difflib.get_close_matches(name, modules, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise InputError(f"hsic.layers: the model has no module {name!r}{hint}")


def find_hidden_layers(model: nn.Module, images: Tensor, layers: Sequence[str] | str = "auto") -> list[str]:
    """Names of the modules whose inputs are the hidden layers T_j.

    ``auto`` takes the inputs of convolutions and linear layers after the first one to run, each tensor once
    (a ResNet's shortcut shares its input with the block), at most 8, spread evenly over the depth.

    Args:
        model: the network; it is run once on ``images``, in eval mode, and comes back in the mode it had.
        images: ``(N, C, H, W)``, two or more are not needed.
        layers: ``"auto"`` or names of modules that have a tensor as their first input.

    Returns:
        Names in the order in which the modules run.

    Raises:
        ValueError: a name is not in the model, or its module takes no tensor in a forward; ``auto`` finds none.
    """
    modules = dict(unwrapped(model).named_modules())
    if layers == "auto":
        wanted = [name for name, module in modules.items() if is_weighted(module)]
    else:
        wanted = [layers] if isinstance(layers, str) else list(layers)
        check_names(model, wanted)

    order: list[tuple[str, Tensor]] = []
    handles = []
    for name in wanted:

        def read(module: nn.Module, args: tuple[object, ...], name: str = name) -> None:
            if args and isinstance(args[0], Tensor):
                order.append((name, args[0]))

        handles.append(modules[name].register_forward_pre_hook(read))
    try:
        with modes_kept(model), torch.no_grad():
            model.eval()
            model(images)
    finally:
        for handle in handles:
            handle.remove()

    if layers != "auto":
        silent = sorted(set(wanted) - {name for name, _ in order})
        if silent:
            raise InputError(
                f"hsic.layers: {', '.join(silent)} took no tensor in a forward of the model; name modules that "
                "the forward calls with a tensor"
            )
        return list(dict.fromkeys(name for name, _ in order))
    found: list[str] = []
    held: list[Tensor] = [order[0][1]] if order else []  # `order` keeps the tensors alive, so identity is sound
    for name, tensor in order[1:]:
        if name not in found and not any(tensor is other for other in held):
            found.append(name)
            held.append(tensor)
    if not found:
        raise InputError(
            "hsic.layers='auto' found no hidden layer; name the modules whose inputs are the hidden layers"
        )
    if len(found) > _MOST:
        found = [found[round(i * (len(found) - 1) / (_MOST - 1))] for i in range(_MOST)]
    return found
