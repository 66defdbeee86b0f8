"""Which layers of a network have weights to prune."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from .._weights import is_weighted
from ..errors import InputError
from .sparsity import SparsitySet

_logger = logging.getLogger(__name__)

_TOLD = 0.05  # share of the weights


def prunable_layers(
    model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """Convolutions and linear layers to prune, by name, in the model's order.

    Args:
        model: any module.
        include: names, or patterns with ``*`` and ``?`` (``layer4.*``); all layers unless given.
        exclude: the same; these stay dense.

    Returns:
        ``{name: module}``; a module registered under several names is listed once, by the first.

    Raises:
        ValueError: a name or pattern matches no such layer, none is left to prune, a weight is no parameter, or is two
            layers'.
    """
    layers = {name: module for name, module in model.named_modules() if is_weighted(module)}
    if not layers:
        raise InputError("the model has no prunable layer: it holds no convolution and no linear layer with a weight")

    def matching(field: str, patterns: Sequence[str]) -> set[str]:
        chosen: set[str] = set()
        for pattern in patterns:
            hits = {name for name in layers if fnmatchcase(name, pattern)}
            if not hits:
                close = difflib.get_close_matches(pattern, layers, n=3) or list(layers)[:3]
                raise InputError(
                    f"{field}: {pattern!r} matches no convolution or linear layer of the model; "
                    f"it has {', '.join(close)}{', ...' if len(layers) > len(close) else ''}"
                )
            chosen |= hits
        return chosen

    kept = set(layers) if include is None else matching("include", include)
    kept -= matching("exclude", exclude)
    if not kept:
        raise InputError("no prunable layer is left; shorten `exclude` or widen `include`")
    chosen = {name: module for name, module in layers.items() if name in kept}
    owners: dict[nn.Parameter, str] = {}
    for name, module in chosen.items():
        if not isinstance(module._parameters.get("weight"), nn.Parameter):
            raise InputError(
                f"{name}: its weight is computed from others (a parametrization, weight_norm, or another compressor's "
                "wrapper); remove that first, or exclude the layer"
            )
        if is_lazy(module._parameters["weight"]):
            raise InputError(f"{name}.weight has no values yet; run the model once, or load its weights, first")
        other = owners.setdefault(module.get_parameter("weight"), name)
        if other != name:
            raise InputError(
                f"{other}.weight and {name}.weight are one tensor, which cannot be pruned in two layers; untie them, "
                f"or exclude {name}"
            )
    return chosen


def refuse_transposed(layers: Mapping[str, nn.Module], sparsity_set: SparsitySet) -> None:
    """Refuse structured sets for transposed convolutions, whose weights are ``(in, out, ...)``.

    Raises:
        ValueError: there is one among the layers.
    """
    if sparsity_set.single_weights:
        return
    for name, module in layers.items():
        if isinstance(module, _ConvTransposeNd):
            raise InputError(
                f"{name}: a transposed convolution can be pruned with granularity='unstructured' only; exclude it"
            )


def tell_of_uncounted(model: nn.Module) -> None:
    """Log where a good part of a network's matrices is in no convolution and no linear layer: not pruned, not counted.

    `nn.MultiheadAttention` is such: queries, keys and values come by an ``in_proj_weight`` of its own.
    """
    counted = {module._parameters.get("weight") for module in model.modules() if is_weighted(module)}
    matrices = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not is_lazy(parameter) and parameter.dim() > 1
    }
    left_out = {name: parameter.numel() for name, parameter in matrices.items() if parameter not in counted}
    total = sum(parameter.numel() for parameter in matrices.values())
    if (share := sum(left_out.values()) / max(1, total)) > _TOLD:
        largest = sorted(left_out, key=lambda name: -left_out[name])[:3]
        _logger.warning(
            "%.0f %% of the network's weights are in no convolution and no linear layer (%s%s): they are not pruned, "
            "and sparsity does not count them",
            100 * share,
            ", ".join(largest),
            ", ..." if len(left_out) > len(largest) else "",
        )
