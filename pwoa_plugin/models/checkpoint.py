"""Checkpoints in the forms that training scripts leave, fitted to a network by names and shapes.

Reading a checkpoint never runs code from it.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._files import named_path, near_name, read_tensors
from .._network import check_network
from .._sparse import FORMAT as _SPARSE
from .._sparse import read_header, unpack_state
from .._text import did_you_mean
from .._wrapped import unwrapped
from ..errors import InputError
from .normalisation import normalisation_of
from .sources import source_of
from .training_aids import CheckpointError as CheckpointError
from .training_aids import without_training_aids

logger = logging.getLogger(__name__)

SHIPPED = {"robust_lenet_mnist": "robust_lenet_mnist.safetensors"}  # name: file in this folder

_SAVE = "save model.state_dict() with safetensors.torch.save_file"

# Keys under which training scripts save the weights, beside epoch, optimizer and so on; the first one present is used.
_WEIGHT_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "params",
    "weights",
    "model_state",
    "module",
    "ema_model_state_dict",
    "state_dict_ema",
    "model_ema",
    "ema",
)

# What wrappers add to names, in any place.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

# Entries that the forward pass never uses: sub_block1 of TRADES's WideResNet, and auxiliary heads for training.
_UNUSED = ("sub_block1.", "aux1.", "aux2.", "AuxLogits.")

_NORMALISER = re.compile(r"normali|(^|[._])(mean|std|mu|sigma)$")
_MAX_CHANNELS = 4  # a normaliser's mean and std have one number a channel
_PLAIN_PICKLE = re.compile(rb"\x80[\x03-\x05]")  # torch writes protocol 2
_NARROWED = "pwoa-pruned"  # in the header of files by `torch_pruning.save_pruned`


class Checkpoint(NamedTuple):
    """The tensors of a file as it holds them, and sentences on where in the file they were found."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


def read_checkpoint(path: str | os.PathLike[str], key: str | None = None) -> Checkpoint:
    """Read the tensors of a checkpoint, without running code in the file.

    Args:
        path: a ``.safetensors`` file; or any format of `torch.save`, with the state dict at the top or under a usual
            key (``state_dict``, ``model``...); or ``shipped:NAME`` with a name in `SHIPPED`; or ``hf:owner/name`` or
            ``timm:NAME``, safetensors of the Hugging Face Hub. The file's content decides what it is, not its name.
        key: of the state dict in the file, dotted where nested; None: the first usual one.
    """
    name = str(named_path("checkpoint", path))
    if key is not None and not isinstance(key, str):
        raise CheckpointError(f"key={key!r} is of type {type(key).__name__}; give the text that names the state dict")
    loaded = _load(_resolve(name), name)
    if key is None:
        return _find_state_dict(loaded, name)
    found, notes = _find_state_dict(_at_key(loaded, key, name), name)
    return Checkpoint(found, (f"took the weights from {key!r}", *notes))


def _at_key(loaded: Any, key: str, name: str) -> Any:
    """What a file has at a key, dotted where nested; of tensors by name those that begin with it."""
    place, steps = loaded, key.split(".")
    for i, step in enumerate(steps):
        if not isinstance(place, Mapping):
            break
        rest = ".".join(steps[i:])
        if rest in place:  # a key may have dots
            return place[rest]
        if below := {str(each)[len(rest) + 1 :]: place[each] for each in place if str(each).startswith(f"{rest}.")}:
            return below
        place = place.get(step)
    there = [str(each) for each in loaded] if isinstance(loaded, Mapping) else []
    hint = did_you_mean(key, there, f"it has {_first(there) or 'no keys'}")
    raise CheckpointError(f"checkpoint {name!r} has no {key!r}{hint}; model.key (--key) names where the weights are")


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str], key: str | None = None) -> tuple[str, ...]:
    """Load a checkpoint (see `read_checkpoint`) into a network. On an error the network is unchanged.

    A prefix (``module.``, ``model.``, ``_orig_mod.``, also stacked) is removed: the one under which most names and
    shapes fit. Entries outside it, copies of the network (``attacker.model.*``), a normaliser, auxiliary heads and
    TRADES's ``sub_block1`` are left out; all other entries must fit. Missing ``num_batches_tracked`` become 0. The
    counter of an ``AveragedModel`` is left out; masks of ``torch.nn.utils.prune`` are multiplied in.

    Args:
        key: of the state dict, in a file with several, such as ``state_dict_ema``.

    Returns:
        What was removed, left out or cast, a sentence each. Each is also logged at info, and an omitted normaliser
        at warning unless the network has a normalisation of its own (`normalise_inputs`).
    """
    if isinstance(path, Mapping):
        raise CheckpointError("checkpoint is a state dict, not a file; call model.load_state_dict")
    name = str(named_path("checkpoint", path))
    check_network(model)
    model = unwrapped(model)
    wanted = model.state_dict()
    found, first_notes = read_checkpoint(path, key)
    notes = list(first_notes)
    _check_plain(name, found)
    found = _without_wrappers(found, wanted, notes)
    found = without_training_aids(found, wanted, name, notes)
    prefix, copies = _prefixes(found, wanted)
    if prefix:
        notes.append(f"took off the prefix {prefix!r}")
    ours: dict[str, Tensor] = {}
    left_out: list[str] = []
    normaliser: list[str] = []
    for key, value in found.items():
        own = key.removeprefix(prefix)
        is_normaliser = value.numel() <= _MAX_CHANNELS and bool(_NORMALISER.search(key))
        spare = is_normaliser or own.startswith(_UNUSED) or key.startswith(copies)
        if key.startswith(prefix) and (own in wanted or not spare):
            ours[own] = value
        elif is_normaliser:
            normaliser.append(f"{key}={tuple(round(number, 4) for number in value.flatten().tolist())}")
        else:
            left_out.append(key)
    counters = [key for key in wanted if key.endswith("num_batches_tracked") and key not in ours]
    ours |= {key: torch.zeros_like(wanted[key], device="cpu") for key in counters}
    _check_fit(name, ours, wanted)
    state = {key: _cast(name, key, ours[key], wanted[key]) for key in wanted}
    if counters:
        notes.append(f"set {len(counters)} missing num_batches_tracked to 0")
    casts = Counter((str(ours[key].dtype)[6:], str(state[key].dtype)[6:]) for key in wanted)
    notes += [f"cast {n} tensor{'s' * (n > 1)} from {old} to {new}" for (old, new), n in casts.items() if old != new]
    if left_out:
        notes.append(f"left out {_first(left_out)}")
    for note in notes:
        logger.info("%s: %s", name, note)
    if normaliser:
        given = normalisation_of(model) is not None
        what = "model.mean and model.std are given" if given else "give model.mean and model.std, or logits are wrong"
        notes.append(f"left out a normaliser ({_first(normaliser)}): {what}")
        logger.log(logging.INFO if given else logging.WARNING, "%s: %s", name, notes[-1])
    model.load_state_dict(state)
    return tuple(notes)


def _resolve(name: str) -> Path:
    if name.startswith("shipped:"):
        file = SHIPPED.get(name.removeprefix("shipped:"))
        if file is None:
            raise CheckpointError(f"checkpoint {name!r} is not shipped; there is shipped:{', shipped:'.join(SHIPPED)}")
        return Path(__file__).with_name(file)
    if (source := source_of(name)) is not None and (of_source := source.weights(name)) is not None:
        return of_source
    path = Path(os.path.expanduser(name))  # Path.expanduser raises where there is no such user
    if not os.path.exists(path):
        if name.startswith(("http:/", "https:/")):
            raise CheckpointError(f"checkpoint {name!r} is an address; download it, and give the file")
        cure = near_name(path) or "; give a .safetensors, .pt or .pth file"
        raise CheckpointError(f"checkpoint {name!r} is missing{cure}")
    if not os.path.isfile(path):  # opening a pipe would block
        raise CheckpointError(f"checkpoint {name!r} is not a regular file; give a .safetensors, .pt or .pth file")
    return path


def _load(file: Path, name: str) -> Any:
    try:
        with file.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise CheckpointError(f"checkpoint {name!r} cannot be read ({error.strerror})") from error
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"checkpoint {name!r} is a web page; download the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"checkpoint {name!r} is a Git LFS pointer; run git lfs pull")
    return _load_safetensors(file) if head[8:9] == b"{" else _load_pickle(file, name, head)


def _load_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors, header = read_tensors(file, "safetensors file")
    except InputError as error:
        raise CheckpointError(f"checkpoint {error}; save or download it again") from None
    narrowed = _NARROWED in header
    if _SPARSE in header:
        try:
            sparse = read_header(tensors, header)
            narrowed, tensors = bool(sparse.removals), unpack_state(tensors, sparse)
        except InputError as error:
            raise CheckpointError(f"checkpoint {str(file)!r} is no usable sparse file ({error})") from None
    if narrowed:
        raise CheckpointError(
            f"checkpoint {str(file)!r} is of a network whose channels were removed; give its run's folder, or "
            "load it with pwoa_plugin.torch_pruning.load_pruned"
        )
    return tensors


def _load_pickle(file: Path, name: str, head: bytes) -> Any:
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            # No mmap: replacing the file later would change the weights.
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises as many types as there are ways to break a file
        text = str(error)
        blocked = re.search(r"GLOBAL ([\w.]+)", text)
        if "TorchScript" in text:
            what = f"is a TorchScript program, which would run code; where you made it, {_SAVE}"
        elif blocked or "Can only" in text or _PLAIN_PICKLE.match(head):
            objects = f"Python objects ({blocked[1]})" if blocked else "Python objects"
            what = f"holds {objects}, and loading those would run code; if you trust it, load it yourself and {_SAVE}"
        else:
            what = "is damaged, or not a PyTorch or safetensors file; save or download it again"
        raise CheckpointError(f"checkpoint {name!r} {what}") from error


class _Ignored:
    """Stands in for objects that training scripts save beside the weights (best accuracy, arguments)."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_STAND_INS: list[Any] = [
    type(name, (_Ignored,), {"__module__": module})
    for module, name in (
        ("argparse", "Namespace"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
    )
]


def _find_state_dict(loaded: Any, name: str) -> Checkpoint:
    """The mapping that holds the tensors, which may be nested in others."""
    way: list[str] = []
    unused: list[str] = []
    while isinstance(loaded, Mapping) and len(way) < 5:  # one that holds itself would have no end
        nested = [key for key in loaded if isinstance(loaded[key], Mapping) and _has_tensors(loaded[key])]
        known = [key for key in _WEIGHT_KEYS if key in nested]
        tensors = {key: value for key, value in loaded.items() if isinstance(key, str) and isinstance(value, Tensor)}
        if tensors and not known:
            also = f"; also there and not used: {_first(unused)} (model.key chooses)" if unused else ""
            return Checkpoint(tensors, (f"took the weights from {'.'.join(way)!r}{also}",) if way else ())
        if not known and len(nested) != 1:
            keys = _first([str(key) for key in loaded]) or "nothing"
            raise CheckpointError(f"checkpoint {name!r} holds no state dict but {keys}; {_SAVE}")
        key = known[0] if known else nested[0]
        unused += [repr(".".join([*way, str(other)])) for other in nested if other != key]
        way.append(str(key))
        loaded = loaded[key]
    what = f"its {'.'.join(way)}" if way else "it"
    raise CheckpointError(f"checkpoint {name!r}: {what} is a {type(loaded).__name__}, not a state dict; {_SAVE}")


def _has_tensors(value: Mapping[Any, Any], depth: int = 3) -> bool:
    """Whether there are tensors by name, at any level. An optimizer's state has numbers for names."""
    return any(
        isinstance(key, str)
        and (isinstance(item, Tensor) or (depth > 0 and isinstance(item, Mapping) and _has_tensors(item, depth - 1)))
        for key, item in value.items()
    )


def _without_wrappers(found: dict[str, Tensor], wanted: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Rename ``features.module.0.weight`` to ``features.0.weight``, unless the network itself has a ``module``."""
    parts = _WRAPPERS - {part for key in wanted for part in key.split(".")}
    present = parts.intersection(part for key in found for part in key.split("."))
    renamed = {".".join(part for part in key.split(".") if part not in parts): found[key] for key in found}
    if not present or len(renamed) < len(found):  # where two names become one, both are left as they are
        return found
    notes.append(f"took {' and '.join(repr(f'{part}.') for part in sorted(present))} off the names")
    return renamed


def _prefixes(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[str, tuple[str, ...]]:
    """The prefix under which most names, then most shapes, fit; the shortest of several, and the others of them."""
    names: Counter[str] = Counter()
    shapes: Counter[str] = Counter()
    for key, value in found.items():
        parts = key.split(".")
        for i in range(len(parts)):
            target = wanted.get(".".join(parts[i:]))
            if target is not None:
                prefix = "".join(f"{part}." for part in parts[:i])
                names[prefix] += 1
                shapes[prefix] += target.shape == value.shape
    most = max(((names[prefix], shapes[prefix]) for prefix in names), default=(0, 0))
    if 2 * most[0] < len(wanted) or not names:
        return "", ()  # another architecture: the error shows its names unchanged
    equal = [prefix for prefix in names if (names[prefix], shapes[prefix]) == most]
    best, *copies = sorted(equal, key=lambda prefix: (len(prefix), prefix))
    return best, tuple(copies)


def _check_fit(name: str, ours: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    ours_shapes, shapes = ({key: tuple(value.shape) for key, value in state.items()} for state in (ours, wanted))
    problems = {
        "of another shape": [
            f"{key} is {ours_shapes[key]} in the file and {shape} in the network"
            for key, shape in shapes.items()
            if ours_shapes.get(key, shape) != shape
        ],
        "missing in the file": [f"{key} {shape}" for key, shape in shapes.items() if key not in ours],
        "not in the network": [f"{key} {shape}" for key, shape in ours_shapes.items() if key not in wanted],
    }
    found = [f"{len(entries)} {what} ({_first(entries)})" for what, entries in problems.items() if entries]
    if found:
        raise CheckpointError(
            f"checkpoint {name!r} does not fit the network: {'; '.join(found)}; "
            "give the model.arch and model.num_classes that it was saved from"
        )


def _check_plain(name: str, found: Mapping[str, Tensor]) -> None:
    for key, value in found.items():
        kinds = {
            "quantised": value.is_quantized,
            "sparse": value.layout != torch.strided,
            "complex": value.is_complex(),
            "on the meta device, without numbers": value.is_meta,
        }
        if kind := next((kind for kind, is_so in kinds.items() if is_so), None):
            raise CheckpointError(f"checkpoint {name!r}: {key} is {kind}; {_SAVE} of the dense float network")


def _cast(name: str, key: str, value: Tensor, target: Tensor) -> Tensor:
    cast = value.to(target.dtype)
    if cast.is_floating_point() and (wrong := int((~cast.isfinite()).sum())):
        raise CheckpointError(f"checkpoint {name!r}: {wrong} values of {key} are not finite; take another checkpoint")
    return cast


def _first(names: list[str]) -> str:
    rest = f", and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
