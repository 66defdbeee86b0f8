"""What several processes do with one network: gradients averaged, everything else the same to the bit."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import _ranks
from .._digest import digest_of_tensors
from .._random import seeded
from ..errors import TrainingError
from .checkpointing import buffers_apart
from .schedule import Schedule
from .snapshot import Snapshot, tensors_of
from .targets import Target


def averaging(model: nn.Module, images: Tensor, logits: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    """The network as it is trained: among several processes in torch's ``DistributedDataParallel``.

    Before each forward the buffers become those of rank 0.

    Args:
        model: in training mode.
        images: ``(2, C, H, W)``, for a trial.
        logits: of a network for images.
    """
    if not _ranks.begin() or isinstance(model, DistributedDataParallel):
        return model
    unused = _ranks.from_main(_has_unused(model, images, logits))
    warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)  # of 1x1 convolutions: costs a copy
    with _ranks.explained():
        return DistributedDataParallel(model, find_unused_parameters=unused, gradient_as_bucket_view=True)


def _has_unused(model: nn.Module, images: Tensor, logits: Callable[[nn.Module, Tensor], Tensor]) -> bool:
    """Whether a step may leave a parameter without gradient, such as those of auxiliary heads."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with seeded(0), buffers_apart(model), torch.enable_grad():
            found = torch.autograd.grad(logits(model, images).float().sum(), parameters, allow_unused=True)
    except (RuntimeError, ValueError):  # such as BatchNorm's, of two images
        return True
    return any(gradient is None for gradient in found)


@contextlib.contextmanager
def averaged(student: nn.Module, now: bool) -> Iterator[None]:
    """Average gradients over the processes in the body's ``backward``, or let them add up until it is due."""
    if not now and isinstance(student, DistributedDataParallel):
        with student.no_sync():
            yield
    else:
        yield


def mean_of_ranks(values: dict[str, float]) -> dict[str, float]:
    """The mean over all processes of each value; one that a process does not have is 0 there."""
    if not _ranks.several():
        return values
    found = _ranks.gathered(values)
    names = dict.fromkeys(name for each in found for name in each)
    return {name: sum(each.get(name, 0.0) for each in found) / len(found) for name in names}


@torch.no_grad()
def copy_from_main(tensors: dict[str, Tensor]) -> None:
    """Have every process's tensors hold what those of rank 0 do."""
    if _ranks.begin():
        with _ranks.explained():
            for tensor in tensors.values():
                held = tensor.detach().contiguous()
                torch.distributed.broadcast(held, src=0)
                if held.data_ptr() != tensor.data_ptr():
                    tensor.copy_(held)


def check_equal(model: nn.Module, target: Target, schedule: Schedule | None, step: int) -> None:
    """Give buffers the values of rank 0; TrainingError where weights, masks or ADMM's Z and U differ to the bit."""
    if schedule is None or not _ranks.begin():
        return
    state = Snapshot.of({}, target=target.state(), schedule=schedule.state())
    copy_from_main(dict(model.named_buffers()))
    facts = {f"the model's {name}": digest_of_tensors(one=tensor) for name, tensor in tensors_of(model).items()}
    facts |= {name: digest_of_tensors(one=tensor) for name, tensor in state.tensors.items()}
    if found := _ranks.difference(facts):
        error = TrainingError(
            f"{found[1]} of rank {found[0]} is not that of rank 0 at step {step}; a forward that changes weights, or a "
            "callback, must do the same in every process"
        )
        raise _ranks.told_by_main(error)
