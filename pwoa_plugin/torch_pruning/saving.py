"""Pruned networks in a file: the removals, and the tensors that are left; no code, and no pickle.

A file is safetensors. Its header holds, as JSON, the removals (Torch-Pruning's pruning history) and the form of the
example inputs. The removals are repeated on a fresh network before the tensors are loaded. Sparse files hold removals,
too.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._files import read_tensors, write_tensors
from .._modes import modes_kept
from .._sparse import FORMAT as _SPARSE
from .._sparse import read_header, unpack_state
from .._text import one_line
from .._wrapped import deep_copy, unwrapped
from ..errors import InputError
from ..removal.inputs import call, call_saying_where, check_model
from ..removal.trace import Tracing
from .removals import Adapt, Removal, removals_from_json, removals_to_json, replay

if TYPE_CHECKING:
    from .planner import Planner
    from .pruner import PwoAGroupPruner

_FORMAT, _VERSION = "pwoa-pruned", 2


def save_pruned(pruner: PwoAGroupPruner | Planner, path: str | os.PathLike[str]) -> None:
    """Write a pruner's network as it is now; an existing file is replaced whole or not at all.

    The file lists all that was removed since the network was whole, by this pruner and by earlier ones.

    Args:
        pruner: the pruner that removed the channels; its ``model`` may have been trained since.
        path: of the file, ``.safetensors``.

    Raises:
        ValueError: nothing was removed yet.
        OSError: the file cannot be written.
    """
    if not hasattr(pruner, "removals"):
        raise InputError(
            f"save_pruned: pruner is of type {type(pruner).__name__}; give the PwoAGroupPruner that removed channels "
            "(save_sparse takes a network)"
        )
    if not pruner.removals:
        raise InputError("save_pruned: nothing is removed yet; call step() or compress() first")
    header = {
        "version": _VERSION,
        "removals": removals_to_json(pruner.removals),
        "inputs": _form_of(pruner.tracing.inputs),
    }
    # One entry: safetensors writes several in any order, and files of equal networks would differ.
    write_tensors(path, pruner.model.state_dict(), {_FORMAT: json.dumps(header)})


@torch.inference_mode(False)  # the network's tensors can be trained
def load_pruned(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    adapt: Adapt | None = None,
    forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    output_transform: Callable[[Any], Any] | None = None,
    unwrapped_parameters: Mapping[nn.Parameter, int] | None = None,
    customized_pruners: Mapping[Any, Any] | None = None,
) -> nn.Module:
    """The network that `save_pruned` wrote, or `save_sparse` after channels were removed.

    Args:
        model: a fresh network of the same architecture, not pruned; it is not changed.
        path: of the file.
        example_inputs: for the trace; needed for sparse files, and where the pruner's were more than tensors and plain
            values.
        adapt, forward_fn, output_transform, unwrapped_parameters, customized_pruners: as in the `PwoAGroupPruner`.

    Returns:
        A copy of ``model`` with fewer channels and the file's tensors, in the model's mode, on its device.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or of another architecture.
    """
    check_model(model := unwrapped(model))
    tensors, header = read_tensors(path, "file of a pruned network")
    path = os.fspath(path)
    tensors, removals, form = _content(tensors, header, path)
    memo: dict[int, Any] = {}
    small = deep_copy(model, memo)
    for name, tensor in model.state_dict().items():
        if name in tensors and tensors[name].dtype != tensor.dtype:
            raise InputError(
                f"{path}: {name} is {tensors[name].dtype} in the file, and {tensor.dtype} in the model; cast the model "
                f"first: model.to({tensors[name].dtype})"
            )
    if example_inputs is None:
        try:
            example_inputs = _drawn(form, next(model.parameters(), torch.zeros(())))
        except (KeyError, TypeError, AttributeError, RuntimeError):
            raise InputError(f"{path}: does not describe the pruner's example inputs; give example_inputs") from None
    else:
        with modes_kept(small), torch.no_grad():
            call_saying_where(small.eval(), example_inputs, forward_fn or call)
    tracing = Tracing(
        example_inputs,
        forward_fn,
        output_transform,
        {memo.get(id(parameter), parameter): dim for parameter, dim in dict(unwrapped_parameters or {}).items()},
        {memo.get(id(key), key): pruner for key, pruner in (customized_pruners or {}).items()},
    )
    try:
        replay(small, tracing.graph(small), removals, adapt)
        given = OrderedDict(tensors)
        given._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # versions, which some modules read
        small.load_state_dict(given)
    except (AssertionError, RuntimeError, IndexError, ValueError) as error:
        reason = one_line(error)[:300]
        raise InputError(
            f"{path}: does not fit this {type(model).__name__} ({reason}); give the architecture as it was before "
            "pruning"
        ) from error
    return small


def _content(
    tensors: dict[str, Tensor], header: Mapping[str, str], path: str
) -> tuple[dict[str, Tensor], list[Removal], Any]:
    """The network's tensors, the removals, and the form of the example inputs; None where a file does not say it."""
    try:
        if _SPARSE in header:
            sparse = read_header(tensors, header)
            if not sparse.removals:
                raise InputError("nothing was removed from its network, which load_sparse() loads")
            return unpack_state(tensors, sparse), removals_from_json(sparse.removals), None
        if _FORMAT not in header:
            raise InputError("it is a safetensors file of something else")
        content = json.loads(header[_FORMAT])
        if (version := content["version"]) != _VERSION:
            raise InputError(f"its version is {version!r}, this release reads {_VERSION}")
        return tensors, removals_from_json(content["removals"]), content["inputs"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        reason = error if isinstance(error, InputError) else "its header lists no removals"
        raise InputError(
            f"{path}: is no usable file of a pruned network ({reason}); make one with save_pruned()"
        ) from None


def _form_of(value: Any) -> Any:
    """The form of example inputs for JSON, without their numbers; None if it cannot be described."""
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            return None
        parts = {key: _form_of(item) for key, item in value.items()}
        return None if None in parts.values() else {"dict": parts}
    if isinstance(value, (tuple, list)):
        items = [_form_of(item) for item in value]
        return None if None in items else {"list": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    return None


def _drawn(form: Any, like: Tensor) -> Any:
    """Inputs of this form, drawn from [0, 1), with the device and dtype of ``like``, a parameter."""
    if "tensor" in form:
        drawn = torch.rand(form["tensor"], generator=torch.Generator().manual_seed(0))
        dtype = getattr(torch, form["dtype"])
        return drawn.to(device=like.device, dtype=like.dtype if dtype.is_floating_point else dtype)
    if "dict" in form:
        return {str(key): _drawn(item, like) for key, item in form["dict"].items()}
    if "list" in form:
        return [_drawn(item, like) for item in form["list"]]
    return form["value"]
