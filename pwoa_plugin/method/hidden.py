"""Hidden layers: which ones HSIC compares, and how to read their activations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

from .._modes import modes_kept
from .._random import random_state, set_random_state
from .._text import did_you_mean, named
from .._weights import is_weighted
from .._wrapped import has_compiled, unwrapped
from ..errors import InputError

Forward = Callable[[nn.Module, Tensor, Sequence[str]], tuple[Any, dict[str, Tensor]]]
"""What a network returns for images, and the inputs of some of its layers."""

_logger = logging.getLogger(__name__)

_MOST = 8
_FEW, _MORE = 2, 3  # images, to see which dimension follows the batch
_EVEN = 4  # in place of 3, for networks that take even batches only


def check_readable(model: nn.Module) -> None:
    """InputError if hooks cannot read hidden layers: the model is compiled, or spread over devices."""
    # torch.compile ignores hooks that come later, and DataParallel's copies share theirs.
    if has_compiled(model):
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
def noting_inputs(model: nn.Module, layers: Iterable[str], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While the context lasts, ``note(name, input)`` at every forward of a layer."""
    with ExitStack() as hooks:
        for name in layers:

            def read(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], name: str = name) -> None:
                first = next(iter((*args, *kwargs.values())), None)
                if isinstance(first, Tensor):
                    note(name, first)

            hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(read, with_kwargs=True))
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
    with noting_inputs(unwrapped(model), layers, seen.__setitem__):
        yield seen


def forward_with_hidden(model: nn.Module, x: Tensor, layers: Sequence[str]) -> tuple[Any, dict[str, Tensor]]:
    """What a network returns for images, and the inputs of ``layers`` (see `read_hidden`)."""
    with read_hidden(model, layers) as hidden:
        return model(x), hidden


def check_names(model: nn.Module, names: Iterable[str]) -> None:
    """InputError unless these are names of the model's modules."""
    modules = dict(unwrapped(model).named_modules())
    for name in names:
        if name not in modules or not name:
            raise InputError(f"hsic.layers: the model has no module {name!r}{did_you_mean(name, modules, most=3)}")


def find_hidden_layers(
    model: nn.Module, images: Tensor, layers: Sequence[str] = "auto", *, field: str = "hsic.layers"
) -> list[str]:
    """Names of the modules whose inputs are the hidden layers T_j, in the order in which they run.

    ``auto`` takes the inputs of convolutions and linear layers after the first one to run, each tensor once
    (a ResNet's shortcut shares its input with the block), at most 8, spread evenly over the depth. Batches of two
    sizes show which inputs hold floats with the batch as first dimension; ``auto`` logs and leaves out the others.

    Args:
        model: the network; it runs twice in eval mode.
        images: ``(N, C, H, W)``; two are enough.
        layers: ``"auto"``, or names of modules that have such a tensor as their first input.
        field: where the names were given, for messages.

    Returns:
        The names; an empty list if ``auto`` finds none, or had to leave out all.

    Raises:
        InputError: a name is not in the model, or its module does not receive such a tensor.
    """
    network, auto = unwrapped(model), layers == "auto"
    if auto:
        layers = [name for name, module in network.named_modules() if is_weighted(module)]
    else:
        check_names(model, layers)
    order, unlike = _look(model, images, layers)
    if not auto:
        if silent := sorted(set(layers) - {name for name, _ in order}):
            raise InputError(
                f"{field}: {', '.join(silent)} took no tensor in a forward of the model in eval mode; name modules "
                "that it calls with a tensor"
            )
        if unlike:
            raise unusable(unlike, field)
        return list(dict.fromkeys(name for name, _ in order))
    found: list[str] = []
    held = [x for _, x in order[:1]]  # `order` keeps the tensors alive, so identity is sound
    for name, tensor in order[1:]:
        if name not in found and not any(tensor is other for other in held):
            found.append(name)
            held.append(tensor)
    if not found:
        _logger.warning(
            "the network has no hidden layer (no second convolution or linear layer), so HSIC and feature "
            "distillation are left out of the loss; hsic.layers can name modules whose inputs are hidden layers"
        )
    if left_out := {name: unlike[name] for name in found if name in unlike}:
        found = [name for name in found if name not in unlike]
        _logger.warning(
            "hsic.layers='auto' leaves out %d of %d hidden layers, whose inputs do not have the batch first: %s%s",
            len(left_out),
            len(left_out) + len(found),
            listed(left_out),
            "" if found else "; none is left, so HSIC and feature distillation are left out of the loss",
        )
    if len(found) > _MOST:
        found = [found[round(i * (len(found) - 1) / (_MOST - 1))] for i in range(_MOST)]
    return found


def _look(model: nn.Module, images: Tensor, layers: Sequence[str]) -> tuple[list[tuple[str, Tensor]], dict[str, str]]:
    """The inputs of ``layers`` for two images, in the order in which they run, and those that are `unlike_batch`.

    Modes and the random state come back.
    """
    order: list[tuple[str, Tensor]] = []
    unlike: dict[str, str] = {}

    def run(size: int) -> list[tuple[str, Tensor]]:
        seen: list[tuple[str, Tensor]] = []
        with noting_inputs(unwrapped(model), layers, lambda name, x: seen.append((name, x))):
            model(images[torch.arange(size, device=images.device) % len(images)])
        for name, x in seen:
            if found := unlike_batch(x, size):
                unlike.setdefault(name, found)
        return seen

    state = random_state()
    try:
        with modes_kept(model), torch.no_grad():
            model.eval()
            order = run(_FEW)
            try:
                run(_MORE)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # of any kind: the model's own code may refuse odd batches
                try:
                    run(_EVEN)
                except RuntimeError as error:
                    said = f"the model takes {_FEW} images, but not {_MORE} or {_EVEN} ({named(error)})"
                    raise InputError(f"{said}; give one that takes batches of any size") from error
    finally:
        set_random_state(state)
    return order, unlike


def unlike_batch(x: Tensor, images: int) -> str:
    """What an activation is, if it does not hold floats with the batch of that many images first; otherwise empty."""
    if not x.is_floating_point():
        return str(x.dtype).removeprefix("torch.")
    return "" if x.dim() > 0 and len(x) == images else f"{tuple(x.shape)} for {images} images"


def unusable(unlike: Mapping[str, str], field: str) -> InputError:
    """The error for layers that the user named."""
    return InputError(
        f"{field}: a hidden layer's input is floats with the batch as first dimension, unlike {listed(unlike)}; "
        "name other layers, or put the batch first in the model (batch_first=True in torch's layers)"
    )


def listed(unlike: Mapping[str, str], most: int = 3) -> str:
    """Layers and what their inputs are, in messages."""
    said = [f"{name} ({what})" for name, what in islice(unlike.items(), most)]
    more = len(unlike) - len(said)
    return ", ".join(said) + (f" and {more} more" if more else "")
