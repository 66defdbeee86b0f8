"""What averaging, pruning and reparametrization leave in a state dict beside or in place of the weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..errors import InputError

# What stands in place of a weight, by its end: what made it, and how to get the weight back.
_COMPUTED = {
    ("_g", "_v"): ("torch.nn.utils.weight_norm", "call remove_weight_norm(module) before you save"),
    ("_orig", "_u"): (
        "torch.nn.utils.spectral_norm",
        "call remove_spectral_norm(module) before you save",
    ),
}
_POPUP = "popup_scores"
_PARAMETRIZED = ".parametrizations."


class CheckpointError(InputError):
    """A checkpoint cannot be loaded; one line says why and what to do."""


def without_training_aids(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str, notes: list[str]
) -> dict[str, Tensor]:
    """The weights: without ``AveragedModel``'s counter, and with the masks of ``torch.nn.utils.prune`` multiplied in.

    Args:
        found: of the file, by name.
        wanted: of the network.
        name: of the file, in messages.
        notes: what was done is added here.

    Raises:
        CheckpointError: weights were trained as something else that only the network of that time can compute.
    """
    ours = dict(found)
    for key in [key for key in ours if key.rpartition(".")[2] == "n_averaged" and key not in wanted]:
        del ours[key]
        notes.append(f"left out {key}, the counter of an AveragedModel")
    masked = [key.removesuffix("_mask") for key in ours if key.endswith("_mask") and key not in wanted]
    masked = [key for key in masked if f"{key}_orig" in ours]
    for key in masked:
        weight, mask = ours.pop(f"{key}_orig"), ours.pop(f"{key}_mask")
        if weight.shape != mask.shape:
            raise CheckpointError(f"checkpoint {name!r}: {key}_orig and {key}_mask differ in shape; save it again")
        ours[key] = weight * mask
    if masked:
        notes.append(f"multiplied {len(masked)} masks of torch.nn.utils.prune into the weights")
    if scores := [key for key in ours if key.rpartition(".")[2] == _POPUP and key not in wanted]:
        raise CheckpointError(
            f"checkpoint {name!r} holds {scores[0]}: HYDRA prunes by these scores, and its weights are dense without; "
            "in HYDRA's code keep the k largest scores of each layer, set the other weights to 0, and save the weights "
            "alone"
        )
    if parametrized := [key for key in ours if _PARAMETRIZED in f".{key}" and key not in wanted]:
        raise CheckpointError(
            f"checkpoint {name!r}: {parametrized[0]} is a part of a parametrized weight; call "
            "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') before you save"
        )
    weights = tuple(wanted)
    for ends, (made_by, cure) in _COMPUTED.items():
        for key in ours:
            stem = key.removesuffix(ends[0])
            if stem != key and key not in wanted and stem.endswith(weights) and f"{stem}{ends[1]}" in ours:
                raise CheckpointError(f"checkpoint {name!r}: {stem} is computed by {made_by} from {key}; {cure}")
    return ours
