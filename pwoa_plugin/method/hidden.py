"""Hidden layers: which ones HSIC compares, and how to read their activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

from .._devices import check_on_device
from .._modes import modes_kept
from .._text import did_you_mean
from .._weights import is_weighted
from .._wrapped import unwrapped
from ..errors import InputError

_MOST = 8


def check_readable(model: nn.Module) -> None:
    """InputError if hooks cannot read hidden layers: the model is compiled, spread over devices, or has no numbers."""
    check_on_device(model)
    # torch.compile ignores hooks that come later, and DataParallel's copies share theirs.
    if any(hasattr(module, "_orig_mod") for module in model.modules()):
        raise InputError(
            "a part of the model is compiled, and its hidden layers cannot be read; give the module that went into "
            "torch.compile (its _orig_mod)"
        )
    if isinstance(model, DataParallel) and len(model.device_ids) > 1:
        raise InputError(
            f"the model is in DataParallel over {len(model.device_ids)} devices, where a hidden layer is in pieces; "
            "use DistributedDataParallel, or one device"
        )


@contextmanager
def _noting_inputs(model: nn.Module, layers: Iterable[str], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While the context lasts, ``note(name, input)`` at every forward of a layer."""
    with ExitStack() as hooks:
        for name in layers:

            def read(module: nn.Module, args: tuple[object, ...], name: str = name) -> None:
                if args and isinstance(args[0], Tensor):
                    note(name, args[0])

            hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(read))
        yield


@contextmanager
def read_hidden(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Read the *inputs* of ``layers`` at every forward of ``model``, while the context lasts.

    Args:
        model: any module (see `unwrapped`).
        layers: names of its submodules. A layer's input is the previous layer's output *after* the activation, even if
            that is a function and not a module.

    Yields:
        ``{name: input}``, filled anew by each forward. Of a module that runs more than once, the last input stays.
    """
    seen: dict[str, Tensor] = {}
    with _noting_inputs(unwrapped(model), layers, seen.__setitem__):
        yield seen


def check_names(model: nn.Module, names: Iterable[str]) -> None:
    """InputError unless these are names of the model's modules."""
    modules = dict(unwrapped(model).named_modules())
    for name in names:
        if name not in modules or not name:
            raise InputError(f"hsic.layers: the model has no module {name!r}{did_you_mean(name, modules, most=3)}")


def find_hidden_layers(model: nn.Module, images: Tensor, layers: Sequence[str] = "auto") -> list[str]:
    """Names of the modules whose inputs are the hidden layers T_j, in the order in which they run.

    ``auto`` takes the inputs of convolutions and linear layers after the first one to run, each tensor once
    (a ResNet's shortcut shares its input with the block), at most 8, spread evenly over the depth.

    Args:
        model: the network; it runs once in eval mode.
        images: ``(N, C, H, W)``; two are enough.
        layers: ``"auto"``, or names of modules that have a tensor as their first input.

    Raises:
        InputError: a name is not in the model, or its module does not receive a tensor; ``auto`` finds nothing.
    """
    network, auto = unwrapped(model), layers == "auto"
    if auto:
        layers = [name for name, module in network.named_modules() if is_weighted(module)]
    else:
        check_names(model, layers)
    order: list[tuple[str, Tensor]] = []
    with (
        _noting_inputs(network, layers, lambda name, x: order.append((name, x))),
        modes_kept(model),
        torch.no_grad(),
    ):
        model.eval()
        model(images)
    if not auto:
        if silent := sorted(set(layers) - {name for name, _ in order}):
            raise InputError(
                f"hsic.layers: {', '.join(silent)} took no tensor in a forward of the model; name modules that "
                "the forward calls with a tensor"
            )
        return list(dict.fromkeys(name for name, _ in order))
    found: list[str] = []
    held = [x for _, x in order[:1]]  # `order` keeps the tensors alive, so identity is sound
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
