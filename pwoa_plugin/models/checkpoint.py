"""Checkpoints as they are found, fitted to a network by names and shapes. Reading one never runs code from it."""

from __future__ import annotations

import difflib
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from .._text import one_line
from ..errors import InputError
from .normalisation import normalisation_of

__all__ = ["SHIPPED", "Checkpoint", "CheckpointError", "load_checkpoint", "read_checkpoint"]

logger = logging.getLogger(__name__)

SHIPPED = {"robust_lenet_mnist": "robust_lenet_mnist.safetensors"}  # by name: file in this folder

_SAVE = "save model.state_dict() with safetensors.torch.save_file"

# Under these names training scripts put the weights beside epoch, optimizer and so on; the first that is there counts.
_NESTED = (
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

# Wrappers' own parts of a name, wherever they stand in it.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

# Beginnings of entries that the network does without: TRADES's WideResNet never uses its sub_block1, and auxiliary
# heads serve training only.
_UNUSED = ("sub_block1.", "aux1.", "aux2.", "AuxLogits.")

_PLAIN_PICKLE = re.compile(rb"\x80[\x03-\x05]")  # torch writes protocol 2

_NORMALISER = re.compile(r"normali|(^|[._])(mean|std|mu|sigma)$")
_NARROWED = "pwoa-pruned"  # in the header of what `torch_pruning.save_pruned` writes
_FEW = 4  # numbers at most in the mean or std of a normaliser: one for each channel


class CheckpointError(InputError):
    """A checkpoint that cannot be loaded: one line that says what it is and what to do."""


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: by name, on the CPU, names and dtypes as in the file.
        notes: what was passed by to get at them, a sentence each.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The tensors in a checkpoint, by name. Nothing in the file is run.

    Args:
        path: a ``.safetensors`` file; or what `torch.save` wrote, in any of its formats, with the state dict alone or
            below a usual name (``state_dict``, ``model``...); or ``shipped:NAME`` for one in `SHIPPED`. What the file
            is, its content says, not its name.

    Raises:
        CheckpointError: the file is missing, damaged, or something else than a checkpoint of tensors.
    """
    with _file(path) as file:
        return Checkpoint(*_state_dict(_loaded(file, os.fspath(path)), os.fspath(path)))


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Load a checkpoint into a network, whatever wrappers it was saved from. The network changes whole or not at all.

    Prefixes are undone, alone or stacked (``module.``, ``model.``, ``_orig_mod.``...): the one under which most names
    and shapes fit. Entries outside it, copies of the network (``attacker.model.*``), a normaliser, auxiliary heads and
    TRADES's ``sub_block1`` are left out; anything else must fit. Missing ``num_batches_tracked`` become 0.

    Args:
        model: gets the weights and buffers, cast to its dtypes and devices.
        path: see `read_checkpoint`.

    Returns:
        What was undone, left out or cast, a sentence each; also logged at info, and at warning where a normaliser was
        left out.

    Raises:
        CheckpointError: the file cannot be read (see `read_checkpoint`), does not fit (the first few names and shapes
            on both sides are listed), or has weights that are not finite.
    """
    name = os.fspath(path)
    found, notes = read_checkpoint(path)
    wanted = model.state_dict()
    said = list(notes)
    found = _unwrapped(found, wanted, said)
    prefix, copies = _prefixes(found, wanted)
    if prefix:
        said.append(f"took off the prefix {prefix!r}")
    mine = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    outside = [key for key in found if not key.startswith(prefix)]
    beside = [prefix + key for key in mine if key not in wanted]
    unused = {
        key
        for key in beside
        if key.removeprefix(prefix).startswith(_UNUSED) or key.startswith(copies) or _is_normaliser(key, found[key])
    }
    counters = {key for key in wanted if key.endswith("num_batches_tracked") and key not in mine}
    mine.update({key: torch.zeros_like(wanted[key], device="cpu") for key in counters})
    _check_fit(name, mine, wanted, [key.removeprefix(prefix) for key in beside if key not in unused])
    state = {key: _cast(name, key, mine[key], wanted[key]) for key in wanted}
    if counters:
        said.append(f"set {len(counters)} missing num_batches_tracked to 0")
    casts = Counter((str(mine[key].dtype)[6:], str(state[key].dtype)[6:]) for key in wanted)
    said += [f"cast {n} tensor{'s' * (n > 1)} from {old} to {new}" for (old, new), n in casts.items() if old != new]
    left_out = [*outside, *(key for key in beside if key in unused)]
    normaliser = [key for key in left_out if _is_normaliser(key, found[key])]
    others = [key for key in left_out if key not in normaliser]
    if others:
        said.append(f"left out {_few(others)}")
    for note in said:
        logger.info("%s: %s", name, note)
    if normaliser:
        values = _few([f"{key}={_numbers(found[key])}" for key in normaliser])
        if normalisation_of(model) is None:
            said.append(f"left out a normaliser ({values}): give model.mean and model.std, or the network is wrong")
            logger.warning("%s: %s", name, said[-1])
        else:
            said.append(f"left out a normaliser ({values}): model.mean and model.std are given")
            logger.info("%s: %s", name, said[-1])
    model.load_state_dict(state)
    return tuple(said)


@contextmanager
def _file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The file meant, once it is known that it can be read."""
    name = os.fspath(path)
    if name.startswith("shipped:"):
        shipped = name.removeprefix("shipped:")
        if shipped not in SHIPPED:
            close = difflib.get_close_matches(shipped, SHIPPED, n=1)
            cure = f"did you mean shipped:{close[0]}?" if close else f"there is shipped:{', shipped:'.join(SHIPPED)}"
            raise CheckpointError(f"checkpoint {name!r} is not shipped; {cure}")
        with as_file(files(__package__) / SHIPPED[shipped]) as file:
            yield file
        return
    file = Path(name).expanduser()
    if file.is_dir():
        raise CheckpointError(f"checkpoint {name!r} is a folder; name the file of weights in it")
    if not file.exists():
        raise CheckpointError(f"checkpoint {name!r} is missing; give a .safetensors, .pt or .pth file")
    if not file.is_file():
        raise CheckpointError(f"checkpoint {name!r} is no regular file; give a .safetensors, .pt or .pth file")
    try:
        file.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"checkpoint {name!r} cannot be read ({error.strerror})") from error
    yield file


def _loaded(file: Path, name: str) -> Any:
    with file.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise CheckpointError(f"checkpoint {name!r} is empty; save or download it again")
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"checkpoint {name!r} is a web page and no weights; download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"checkpoint {name!r} is a Git LFS pointer and no weights; run git lfs pull")
    if head[8:9] == b"{":
        try:
            with safe_open(file, framework="pt") as opened:
                header = opened.metadata() or {}
            if _NARROWED in header:
                raise CheckpointError(
                    f"checkpoint {name!r} is of a network whose channels were removed; give its run's folder, or "
                    "load it with pwoa_plugin.torch_pruning.load_pruned"
                )
            return load_file(file)
        except CheckpointError:
            raise
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"checkpoint {name!r} is damaged or no safetensors file ({_one_line(error)}); save or download it again"
            ) from error
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters is raised
            # No mmap: a file that is replaced later would change the weights.
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises as many kinds as there are ways to break a file
        text = str(error)
        if "TorchScript" in text:
            raise CheckpointError(
                f"checkpoint {name!r} is a TorchScript program, which would run code; where you made it, {_SAVE}"
            ) from error
        blocked = re.search(r"GLOBAL ([\w.]+)", text)
        if blocked or "Can only" in text or _PLAIN_PICKLE.match(head):
            what = f" ({blocked[1]})" if blocked else ""
            raise CheckpointError(
                f"checkpoint {name!r} holds Python objects{what}, and loading those would run code; "
                f"where you trust it, load it yourself and {_SAVE}"
            ) from error
        raise CheckpointError(
            f"checkpoint {name!r} is damaged, or no PyTorch or safetensors file ({_one_line(error)}); "
            "save or download it again"
        ) from error


class _PassedBy:
    """Stands in for what training scripts leave beside the weights (best accuracy, arguments). It does nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    type(name, (_PassedBy,), {"__module__": module})
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


def _state_dict(loaded: Any, name: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The mapping that holds the tensors, and the way there."""
    way: list[str] = []
    others: list[str] = []
    while True:
        if not isinstance(loaded, Mapping) or len(way) > 4:
            what = f"its {'.'.join(way)}" if way else "it"
            raise CheckpointError(f"checkpoint {name!r}: {what} is a {type(loaded).__name__}, no state dict; {_SAVE}")
        nested = [key for key in loaded if isinstance(loaded[key], Mapping) and _tensors_below(loaded[key])]
        known = [key for key in _NESTED if key in nested]
        tensors = {key: value for key, value in loaded.items() if isinstance(key, str) and isinstance(value, Tensor)}
        if tensors and not known:
            break
        if not known and len(nested) != 1:
            keys = _few([str(key) for key in loaded]) if loaded else "nothing"
            raise CheckpointError(f"checkpoint {name!r} holds no state dict but {keys}; {_SAVE}")
        key = known[0] if known else nested[0]
        others += [repr(".".join([*way, str(other)])) for other in nested if other != key]
        way.append(str(key))
        loaded = loaded[key]
    also = f"; also there and not used: {_few(others)}" if others else ""
    return tensors, (f"took the weights from {'.'.join(way)!r}{also}",) if way else ()


def _tensors_below(value: Mapping[Any, Any], depth: int = 3) -> bool:
    """Whether there are tensors by name; an optimizer's state has numbers for names."""
    return any(
        isinstance(key, str)
        and (isinstance(item, Tensor) or (depth > 0 and isinstance(item, Mapping) and _tensors_below(item, depth - 1)))
        for key, item in value.items()
    )


def _unwrapped(found: dict[str, Tensor], wanted: dict[str, Tensor], said: list[str]) -> dict[str, Tensor]:
    """Names without the wrappers' parts: ``features.module.0.weight`` is ``features.0.weight``."""
    ours = {part for key in wanted for part in key.split(".")}
    parts = _WRAPPERS - ours
    seen: set[str] = set()
    result: dict[str, Tensor] = {}
    for key, value in found.items():
        split = key.split(".")
        seen.update(parts.intersection(split))
        result[".".join(part for part in split if part not in parts)] = value
    if len(result) < len(found) or not seen:
        return found  # two names would become one
    said.append(f"took {' and '.join(repr(f'{part}.') for part in sorted(seen))} off the names")
    return result


def _prefixes(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[str, tuple[str, ...]]:
    """The prefix below which most names, then shapes, are the network's (the shortest of equals), and those equals."""
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
    if not names or 2 * max(names.values()) < len(wanted):
        return "", ()  # another network; its names are best shown as they are
    most = max((names[prefix], shapes[prefix]) for prefix in names)
    equal = [prefix for prefix in names if (names[prefix], shapes[prefix]) == most]
    best, *copies = sorted(equal, key=lambda prefix: (len(prefix), prefix))
    return best, tuple(copies)


def _is_normaliser(key: str, value: Tensor) -> bool:
    return value.numel() <= _FEW and bool(_NORMALISER.search(key))


def _check_fit(name: str, mine: dict[str, Tensor], wanted: dict[str, Tensor], unexpected: list[str]) -> None:
    missing = [f"{key} {tuple(wanted[key].shape)}" for key in wanted if key not in mine]
    other = [
        f"{key} is {tuple(mine[key].shape)} in the file and {tuple(wanted[key].shape)} in the network"
        for key in wanted
        if key in mine and mine[key].shape != wanted[key].shape
    ]
    surplus = [f"{key} {tuple(mine[key].shape)}" for key in unexpected]
    said = [f"{len(other)} of another shape ({_few(other)})"] if other else []
    said += [f"{len(missing)} missing in the file ({_few(missing)})"] if missing else []
    said += [f"{len(surplus)} that the network has not ({_few(surplus)})"] if surplus else []
    if said:
        raise CheckpointError(
            f"checkpoint {name!r} does not fit the network: {'; '.join(said)}; "
            "give the model.arch and model.num_classes that it was saved from"
        )


def _cast(name: str, key: str, value: Tensor, target: Tensor) -> Tensor:
    if value.device.type != "cpu" or value.layout != torch.strided or value.is_quantized or value.is_complex():
        raise CheckpointError(
            f"checkpoint {name!r}: {key} is a {value.layout} tensor of {value.dtype} on {value.device}, "
            "and real dense weights are needed"
        )
    cast = value.to(target.dtype)
    if cast.is_floating_point() and (wrong := int((~cast.isfinite()).sum())):
        raise CheckpointError(f"checkpoint {name!r}: {wrong} values of {key} are not finite; take another checkpoint")
    return cast


def _few(names: list[str], most: int = 3) -> str:
    rest = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _numbers(value: Tensor) -> str:
    return "(" + ", ".join(f"{number:.4g}" for number in value.flatten().tolist()) + ")"


def _one_line(error: Exception) -> str:
    first = one_line(error).split(". ")[0]
    return first[:160] if " " in first and not first.startswith("Weights only") else type(error).__name__
