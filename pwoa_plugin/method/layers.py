"""Which layers of a network have weights to prune."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from .._logits import described
from .._text import did_you_mean
from .._weights import cure_of_computed, is_weighted
from ..errors import InputError
from .sparsity import SparsitySet

_logger = logging.getLogger(__name__)

_WARN_FROM = 0.05  # share of the weights


def prunable_layers(
    model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """Convolutions and linear layers to prune, by name, in the model's order.

    Args:
        model: any module.
        include: names, or patterns with ``*`` and ``?`` (``layer4.*``); None: all layers.
        exclude: names or patterns of layers that stay dense.

    Returns:
        ``{name: module}``; a module that has several names is listed once, by the first.

    Raises:
        InputError: a name or pattern matches no such layer, none is left to prune, or a weight is computed from others,
            has no values yet or belongs to two layers.
    """
    layers = {name: module for name, module in model.named_modules() if is_weighted(module)}
    if not layers:
        raise InputError("the model has no prunable layer: it holds no convolution and no linear layer with a weight")
    included = set(layers) if include is None else _matching("include", include, layers)
    excluded = _matching("exclude", exclude, layers)
    chosen = {name: module for name, module in layers.items() if name in included - excluded}
    if not chosen:
        raise InputError("no prunable layer is left; shorten `exclude` or widen `include`")
    owners: dict[nn.Parameter, str] = {}
    for name, module in chosen.items():
        weight = module._parameters.get("weight")
        if weight is None:
            cure = cure_of_computed(module)
            raise InputError(f"{name}: its weight is computed from others {cure}, or exclude the layer")
        if is_lazy(weight):
            raise InputError(f"{name}.weight has no values yet; run the model once, or load its weights, first")
        if not weight.numel() or not weight.is_floating_point():
            raise InputError(f"{name}.weight is {described(weight)}, which cannot be pruned; exclude the layer")
        other = owners.setdefault(weight, name)
        if other != name:
            raise InputError(
                f"{other}.weight and {name}.weight are one tensor, which cannot be pruned in two layers; untie them, "
                f"or exclude {name}"
            )
    return chosen


def _matching(field: str, patterns: Sequence[str], layers: Mapping[str, nn.Module]) -> set[str]:
    chosen: set[str] = set()
    for pattern in patterns:
        hits = {name for name in layers if fnmatchcase(name, pattern)}
        if not hits:
            known = f"it has {', '.join(list(layers)[:3])}..."
            raise InputError(
                f"{field}: {pattern!r} matches no convolution or linear layer of the model"
                f"{did_you_mean(pattern, layers, known, most=3)}"
            )
        chosen |= hits
    return chosen


def refuse_transposed(layers: Mapping[str, nn.Module], sparsity_set: SparsitySet) -> None:
    """InputError for transposed convolutions, whose weights are ``(in, out, ...)``, in structured sets."""
    for name, module in layers.items():
        if isinstance(module, _ConvTransposeNd) and not sparsity_set.single_weights:
            raise InputError(
                f"{name}: a transposed convolution can be pruned with granularity='unstructured' only; exclude it"
            )


def warn_of_uncounted(model: nn.Module) -> None:
    """Log if many weights are outside convolutions and linear layers: these are neither pruned nor counted.

    Such a weight is the ``in_proj_weight`` of `nn.MultiheadAttention`, for queries, keys and values.
    """
    counted = {module._parameters.get("weight") for module in model.modules() if is_weighted(module)}
    matrices = [(name, value) for name, value in model.named_parameters() if not is_lazy(value) and value.dim() > 1]
    left_out = {name: value.numel() for name, value in matrices if value not in counted}
    total = sum(value.numel() for _, value in matrices)
    if (share := sum(left_out.values()) / max(1, total)) > _WARN_FROM:
        largest = sorted(left_out, key=lambda name: -left_out[name])[:3]
        _logger.warning(
            "%.0f %% of the network's weights are in no convolution and no linear layer (%s%s): they are not pruned, "
            "and sparsity does not count them",
            100 * share,
            ", ".join(largest),
            ", ..." if len(left_out) > len(largest) else "",
        )
