"""What all processes of a run must begin with alike."""

from __future__ import annotations

from torch import Tensor, nn

from .. import _ranks
from .._digest import digest_of
from .._versions import installed_versions
from ..errors import InputError
from .batches import Batches
from .loss import PwoALoss
from .settings import TrainingConfig

_OWN = {"device", "progress"}


def agree_on_start(config: TrainingConfig, network: nn.Module) -> None:
    """InputError in every process if configs, packages or weights differ."""
    if not _ranks.begin():
        return
    if config.compile:
        raise InputError("compile: does not go with several processes; leave it out")
    fields = config.model_dump(mode="json", exclude=_OWN)
    packages = {f"the version of {name}": version for name, version in installed_versions().items()}
    _ranks.agree_on(fields | packages, "start all processes with the same config and the same packages")
    _ranks.agree("the model", digest_of(network), "give all processes the same weights")


def agree_on_length(batches: Batches) -> None:
    """InputError in every process if epochs would have different numbers of batches."""
    if _ranks.begin():
        _ranks.agree("the number of batches in train_loader", len(batches), "give all processes the same images")


def first_images(batches: Batches, images: int) -> Tensor:
    """The first images of rank 0's own epoch, see `Batches.first`; on the own device."""
    with _ranks.together():
        found = batches.first(images)
    return _ranks.tensor_from_main(found)


def prepare(loss: PwoALoss, model: nn.Module, images: Tensor) -> None:
    """`PwoALoss.prepare` in every process, with the radius that rank 0 finds."""
    with _ranks.together():
        loss.prepare(model, images)
    if _ranks.begin():
        loss.set_radius(_ranks.from_main(loss.radius or 0.0))
