"""The processes that ``torchrun`` started: which one this is, and what all of them must agree on.

Accelerate reads the launcher's environment and starts the process group; collectives are torch's. Without such an
environment nothing here imports anything, and every function does what one process alone does.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import InputError, PwoAError, RunError, missing

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

_T = TypeVar("_T")
_Sequence = TypeVar("_Sequence", bound=Any)  # of items, or a tensor of rows

# As Accelerate reads them: torchrun, then PMI (``srun --mpi=pmi2``), Open MPI, MVAPICH.
_NAMES = (
    ("RANK", "WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
)
_TIMEOUT = 600.0  # seconds that a process waits for the others
_BACKENDS = ("gloo", "nccl")

_group: ProcessGroup | None = None  # gloo, for objects: a model's own group may be of GPUs only


def _launched() -> tuple[int, int]:
    """Rank and number of processes, by the environment alone."""
    for rank_name, size_name in _NAMES:
        found = os.environ.get(rank_name, ""), os.environ.get(size_name, "")
        if all(text.isdecimal() for text in found):
            return int(found[0]), int(found[1])
    return 0, 1


def rank() -> int:
    """The number of this process, from 0."""
    return _launched()[0] if several() else 0


def size() -> int:
    """How many processes there are; 1 without a launcher."""
    return _launched()[1]


def several() -> bool:
    """Whether a launcher started more than one process."""
    return size() > 1


def is_main() -> bool:
    """Whether this process writes files and messages."""
    return rank() == 0


def go_on() -> str:
    """How a line begins that says how to continue."""
    return "go on, by the same launcher, with" if several() else "go on with"


def own_part(items: _Sequence) -> _Sequence:
    """This process's slice of a list or a tensor that all have; slices differ by one item at most."""
    each, rest = divmod(len(items), size())
    start = each * rank() + min(rank(), rest)
    part: _Sequence = items[start : start + each + (rank() < rest)]
    return part


def timeout() -> float:
    """Seconds that a process waits for the others: ``PWOA_RANKS_TIMEOUT``, or 600."""
    text = os.environ.get("PWOA_RANKS_TIMEOUT", "")
    try:
        seconds = float(text) if text else _TIMEOUT
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e7:
        raise InputError(f"PWOA_RANKS_TIMEOUT={text}: give seconds above 0, or leave it out")
    return seconds


def begin() -> bool:
    """Join the process group, once; whether there are several processes.

    gloo carries tensors of the CPU, NCCL those of GPUs. A group that the caller has started is used as it is.

    Raises:
        InputError: ``PWOA_BACKEND`` names an unknown backend, or one that is not here.
        MissingPackageError: there are several processes, and Accelerate is not installed.
        RunError: the other processes did not come in time.
    """
    global _group
    if not several() or _group is not None:
        return several()
    waits = datetime.timedelta(seconds=timeout())
    import torch
    from torch import distributed

    on_gpus = torch.cuda.is_available()
    backend = os.environ.get("PWOA_BACKEND") or ("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    if os.environ.get("PWOA_BACKEND") and backend not in _BACKENDS[: 2 if on_gpus else 1]:
        usable = " or ".join(_BACKENDS[: 2 if on_gpus else 1])
        raise InputError(f"PWOA_BACKEND={backend}: cannot be used here; use {usable}, or leave it out")
    try:
        from accelerate import PartialState
    except ModuleNotFoundError:
        raise missing("a run in several processes", "accelerate", "ranks") from None
    if not distributed.is_initialized():
        atexit.register(_end)
    with explained():
        PartialState(cpu=not on_gpus, backend=backend, timeout=waits)
        if distributed.get_world_size() != size():
            raise InputError(f"the process group has {distributed.get_world_size()} processes, the launcher {size()}")
        made = distributed.new_group(backend="gloo", timeout=waits)
        _group = made if isinstance(made, distributed.ProcessGroup) else None
    return True


def _end() -> None:
    """End the threads of the process group, which abort a process that exits without."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def device_here(device: Any) -> Any:
    """A device of this process: of GPUs without a number, the one that the launcher gave it."""
    import torch

    device = torch.device(device)
    if begin() and device.type == "cuda":
        from accelerate import PartialState

        return torch.device("cuda", PartialState().local_process_index % torch.cuda.device_count())
    return device


def barrier() -> None:
    """Wait for the others."""
    if begin():
        gathered(None)


def gathered(value: _T) -> list[_T]:
    """The values of all processes, by rank, in every process. They are pickled."""
    if not begin():
        return [value]
    from torch import distributed

    values: list[Any] = [None] * size()
    with explained():
        distributed.all_gather_object(values, value, group=_group)
    return values


def from_main(value: _T) -> _T:
    """The value that rank 0 has, in every process. It is pickled; the others' own is of no account."""
    found: _T = from_rank(0, value)
    return found


def from_rank(source: int, value: Any) -> Any:
    """`from_main` for any process."""
    if not begin():
        return value
    from torch import distributed

    values = [value if rank() == source else None]
    with explained():
        distributed.broadcast_object_list(values, src=source, group=_group)
    return value if rank() == source else values[0]


def tensor_from_main(tensor: Tensor) -> Tensor:
    """`from_main` for a tensor, on the device of the own one."""
    return from_main(tensor.cpu()).to(tensor.device) if begin() else tensor


def number_from_main(value: int) -> int:
    """`from_main` for an integer, in half of its time; for every step."""
    if not begin():
        return value
    import torch
    from torch import distributed

    held = torch.tensor(value)
    with explained():
        distributed.broadcast(held, src=0, group=_group)
    return int(held)


def on_main(function: Callable[[], _T]) -> _T:
    """What the function returns or raises (of our own errors) in rank 0, which alone calls it, in every process."""
    if not begin():
        return function()
    result: Any = None
    with together():
        if is_main():
            result = function()
    found: _T = from_main(result)
    return found


def difference(facts: Mapping[str, Any]) -> tuple[int, str] | None:
    """The first rank whose facts are not those of rank 0, and the name of one that differs; None if all are equal."""
    first, *others = gathered(dict(facts))
    for number, other in enumerate(others, 1):
        for name in first | other:
            if first.get(name) != other.get(name):
                return number, name
    return None


def agree(what: str, value: Any, cure: str) -> None:
    """InputError in every process unless all give an equal value, such as a digest."""
    agree_on({what: value}, cure)


def agree_on(facts: Mapping[str, Any], cure: str) -> None:
    """InputError in every process, naming a fact that differs, unless all give equal facts."""
    if begin() and (found := difference(facts)):
        raise told_by_main(InputError(f"{found[1]} of rank {found[0]} is not that of rank 0; {cure}"))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What the body raises in one process (of our own errors), every process raises. The body has no collectives."""
    if not begin():
        yield
        return
    error: PwoAError | None = None
    try:
        yield
    except PwoAError as caught:
        error = caught
    found = gathered(None if error is None else (type(error), str(error)))
    if all(each is None for each in found):
        return
    first = next(number for number, each in enumerate(found) if each is not None)
    kind, said = found[first] or (RunError, "")
    alike = all(each == found[first] for each in found)
    raise told_by_main(kind(said if alike else f"rank {first}: {said}")) from error


def told_by_main(error: PwoAError) -> PwoAError:
    """The error, which every process raises, so that one line is enough."""
    vars(error)["in_all_ranks"] = True
    return error


def is_told_elsewhere(error: BaseException) -> bool:
    """Whether another process writes this error's line."""
    return not is_main() and bool(getattr(error, "in_all_ranks", False))


_LOST = ("onnection", "imed out", "imeout", "peer", "gloo", "NCCL", "Broken pipe", "recvValue")


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Raise a RunError where another process has ended or does not answer. Ranks 0 and 1 tell: one may be it."""
    try:
        yield
    except RuntimeError as error:
        from torch import distributed

        known = isinstance(error, distributed.DistError) or any(sign in str(error) for sign in _LOST)
        if isinstance(error, PwoAError) or not several() or not known:
            raise
        lost = RunError(
            f"another process of the {size()} has ended, or did not answer within {timeout():g} s; "
            "a run in a folder goes on with --resume"
        )
        raise (lost if rank() < 2 else told_by_main(lost)) from error
