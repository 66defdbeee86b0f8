"""`speedup`: a smaller network that answers as the masked one does."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._text import named
from .._weights import is_weighted
from ..errors import InputError
from ..method.constants import SAMPLES, ConstantChannels, find_constant_channels, links
from .groups import Network, Obstacle, freed, remove_dead, trace
from .inputs import call, call_saying_where, check_model, copy_of, map_tensors, random_batch, tensors_of
from .masks import bake, check_masks
from .report import KeptChannels, ShrunkLayer, SpeedupReport

__all__ = ["TOLERANCE", "speedup", "speedup_with_report"]

_logger = logging.getLogger(__name__)

#: Largest difference of outputs that is let through, as a share of the largest absolute output.
TOLERANCE = 1e-5


def speedup(
    model: nn.Module,
    masks: Mapping[str, Mapping[str, Tensor | None]],
    example_inputs: Any,
    *,
    zero_constants: bool = False,
) -> nn.Module:
    """A smaller copy of ``model`` without the channels that its masks have dead.

    In eval mode it answers as the model with masks baked in does, to `TOLERANCE` of the largest absolute output. This
    is checked, in float64 where the model runs in it, on ``example_inputs`` and on random ones. A channel goes if
    nothing reads it: each layer behind has zero weights for it, or it is 0 whatever the image. So:

    * a dead filter goes unless its bias, or what BatchNorm makes of it, still reaches a layer;
    * a live filter goes if every layer behind ignores it (input-channel masks);
    * where masks disagree across a residual sum, a channel goes only if all have it dead.

    What stays though a mask has it dead is logged at INFO with the reason; `speedup_with_report` returns that. Masks of
    single weights free no channel: then a warning says that nothing shrinks. Zeros in the weights count whoever made
    them. Channels of the model's output stay. Parameters of the small model are new: give it a new optimizer.

    Args:
        model: the network, not wrapped by a compressor. It is not touched: the small one is a copy, with the same
            modes, ``requires_grad``, dtype and device, without gradients.
        masks: NNI's, ``{module name: {parameter name: 0/1 tensor shaped as the parameter}}``.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of keyword arguments, on the model's device,
            batch first. The trace follows the way that the model takes with them.
        zero_constants: set to 0 the constants that alone keep dead filters (biases, weight and bias of BatchNorm), and
            remove these, too. That changes the output; the report and the log say by how much.

    Returns:
        The small model.

    Raises:
        ValueError: model, masks or inputs cannot be used, or the model cannot be traced; one line says where and why.
    """
    return speedup_with_report(model, masks, example_inputs, zero_constants=zero_constants)[0]


def speedup_with_report(
    model: nn.Module,
    masks: Mapping[str, Mapping[str, Tensor | None]],
    example_inputs: Any,
    *,
    zero_constants: bool = False,
) -> tuple[nn.Module, SpeedupReport]:
    """`speedup`, and what it removed, what it kept, and why."""
    check_model(model)
    checked = check_masks(model, masks)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        work, inputs = _runnable_copy(model, checked, example_inputs)
        reference = _Reference(work, inputs)
        if problem := reference.problem(work):
            raise InputError(f"model: called again on the same inputs, {problem}; its eval mode must not be random")
        network = Network(work, _constants(work, inputs))
        trace(work, inputs)
        network = _shrink(network, inputs, reference)
        zeroed: dict[str, int] = {}
        change = 0.0
        if zero_constants:
            zeroed = _zero_constants(network, inputs)
        if zeroed:
            after = _Reference(network.model, inputs)
            change = reference.difference(after)
            network.update(_constants(network.model, inputs))
            network, reference = _shrink(network, inputs, after), after
        small = _as_before(network.model, model)
    kept = tuple(_kept(network, model, checked))
    report = SpeedupReport(
        layers=_layers(network, model),
        kept=kept,
        zeroed=zeroed,
        output_change=change,
        error=reference.error,
        parameters=(_parameters(model), _parameters(small)),
        history=tuple(network.history),
    )
    _tell(report, network)
    return small, report


class _Reference:
    """What a model answers to the example inputs, and to random ones of their form."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.inputs = [inputs]
        self.outputs = [_outputs(model, inputs)]
        self.error = 0.0
        if not all(tensor.isfinite().all() for tensor in self.outputs[0]):
            raise InputError("the masked model's output on example_inputs is not finite; give a sound model and inputs")
        with contextlib.suppress(Exception):  # some models take no random numbers; then the examples must do
            drawn = random_batch(inputs, torch.Generator().manual_seed(1))
            answer = _outputs(model, drawn)
            if all(tensor.isfinite().all() for tensor in answer):
                self.inputs.append(drawn)
                self.outputs.append(answer)

    def difference(self, other: _Reference) -> float:
        """Largest absolute difference on the example inputs, over the largest absolute value."""
        return _difference(self.outputs[0], other.outputs[0])

    def problem(self, model: nn.Module) -> str:
        """Why ``model`` does not answer the same; empty if it does."""
        self.error = 0.0
        for inputs, outputs in zip(self.inputs, self.outputs, strict=True):
            answer = _outputs(model, inputs)
            if [tensor.shape for tensor in answer] != [tensor.shape for tensor in outputs]:
                return "its output has another shape"
            self.error = max(self.error, _difference(outputs, answer))
        return "" if self.error <= TOLERANCE else f"its output differs by {self.error:.1e} of the largest value"


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    return [tensor.to("cpu", torch.float64) for tensor in tensors_of(call(model, inputs))]


def _difference(expected: list[Tensor], found: list[Tensor]) -> float:
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.numel():
            largest = one.abs().max().clamp_min(torch.finfo(one.dtype).tiny)
            difference = ((one - other).abs().max() / largest).item()
            worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def _runnable_copy(
    model: nn.Module, masks: Mapping[str, Mapping[str, Tensor]], example_inputs: Any
) -> tuple[nn.Module, Any]:
    """The masked model, and inputs for it, in float64 if it runs so; all parameters ask for a gradient."""
    work = copy_of(model)
    bake(work, masks)
    inputs = map_tensors(lambda tensor: tensor.detach().clone(), example_inputs)
    with torch.no_grad():
        try:
            double = copy.deepcopy(work).double()
            doubled = map_tensors(lambda x: x.double() if x.is_floating_point() else x, inputs)
            call(double, doubled)
            work, inputs = double, doubled
        except Exception:  # its own dtype, then; if that fails, too, it says where
            call_saying_where(work, inputs)
    for parameter in work.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)  # Torch-Pruning follows gradients
    return work, inputs


def _constants(model: nn.Module, inputs: Any, *, zero_constants: bool = False) -> ConstantChannels:
    random = torch.Generator().manual_seed(0)

    def forward_on(samples: int) -> Any:
        return call(model, random_batch(inputs, random, samples))

    found: ConstantChannels | None = None
    error: Exception | None = None
    for samples in (SAMPLES, 2):
        try:
            forward = partial(forward_on, samples)
            found = find_constant_channels(model, forward, _connections, zero_constants=zero_constants)
            break
        except Exception as raised:
            error = raised
    if found is None:
        assert error is not None
        raise InputError(
            f"example_inputs: the model does not run on batches of {SAMPLES} or 2 random samples ({named(error)})"
        ) from error
    return found


def _connections(module: nn.Module) -> Tensor:
    weight = getattr(module, "weight", None)
    if weight is None:  # a BatchNorm without
        assert isinstance(module, _BatchNorm)
        return torch.ones(module.num_features, dtype=torch.bool)
    assert isinstance(weight, Tensor)
    present = weight.detach() != 0
    return present if isinstance(module, _BatchNorm) else links(module, present)


def _shrink(network: Network, inputs: Any, reference: _Reference) -> Network:
    """A smaller network, checked. ``network`` itself is not changed."""

    def problem_of(attempt: Network, only: str | None = None) -> tuple[bool, str]:
        try:
            removed = remove_dead(attempt, inputs, only=only, skip=skip)
            again = removed and only is None
            while again and freed(attempt):
                again = remove_dead(attempt, inputs)
            return removed, reference.problem(attempt.model)
        except Exception as error:
            return True, named(error)

    skip: dict[str, str] = {}
    attempt = copy.deepcopy(network)
    _, problem = problem_of(attempt)
    if not problem:
        return attempt
    _logger.info("removing all dead channels at once fails (%s): going on layer by layer", problem)
    changed = True
    while changed:
        changed = False
        for name in network.inputs:
            if name in skip:
                continue
            attempt = copy.deepcopy(network)
            removed, problem = problem_of(attempt, name)
            if removed and problem:
                skip[name] = f"without them the model fails ({problem})"
                _logger.info("%s: %s", name, skip[name])
            elif removed:
                network, changed = attempt, True
    attempt = copy.deepcopy(network)
    remove_dead(attempt, inputs, skip=skip)
    network.obstacles = attempt.obstacles
    reference.problem(network.model)  # measures its error
    return network


def _zero_constants(network: Network, inputs: Any) -> dict[str, int]:
    """Zero the constants that alone keep channels in ``network``.

    Returns:
        ``{parameter: channels}``, of those that were not 0.
    """
    plan = _constants(network.model, inputs, zero_constants=True)
    silent = {
        f"{name}.{target}": channels
        for name, module in network.model.named_modules()
        for target, channels in plan.constants_of(module).items()
        if module._parameters.get(target) is not None
    }

    # Zero all of them in a copy, to see for which this frees a channel.
    trial = copy.deepcopy(network)
    _fill(trial.model, silent)
    trial.update(_constants(trial.model, inputs))
    trial = _shrink(trial, inputs, _Reference(trial.model, inputs))
    useful: dict[str, Tensor] = {}
    for parameter, channels in silent.items():
        name = parameter.rpartition(".")[0]
        gone = ~torch.isin(network.filters[name], trial.filters[name])
        useful[parameter] = channels & gone.to(channels.device)
    return _fill(network.model, useful)


@torch.no_grad()
def _fill(model: nn.Module, silent: Mapping[str, Tensor]) -> dict[str, int]:
    changed = {}
    for name, channels in silent.items():
        parameter = model.get_parameter(name)
        if count := int((channels & (parameter != 0)).sum()):
            changed[name] = count
            parameter.masked_fill_(channels, 0)
    return changed


@torch.no_grad()
def _as_before(small: nn.Module, model: nn.Module) -> nn.Module:
    """Dtypes, modes and ``requires_grad`` as they are in ``model``."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        owner, _, target = name.rpartition(".")
        mine = getattr(small.get_submodule(owner), target)
        mine.data = mine.data.to(tensor.dtype)
        mine.grad = None
        if isinstance(mine, nn.Parameter):
            mine.requires_grad_(tensor.requires_grad)
    for name, module in model.named_modules():
        small.get_submodule(name).training = module.training
    return small


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _layers(network: Network, model: nn.Module) -> dict[str, ShrunkLayer]:
    found = {}
    before = Network(model, ConstantChannels())
    for name, inputs in before.inputs.items():
        filters = before.filters[name]
        no_filters = filters[~torch.isin(filters, network.filters[name])]
        no_inputs = inputs[~torch.isin(inputs, network.inputs[name])]
        if len(no_filters) or len(no_inputs):
            found[name] = ShrunkLayer(
                filters=(len(filters), len(filters) - len(no_filters)),
                inputs=(len(inputs), len(inputs) - len(no_inputs)),
                removed_filters=tuple(no_filters.tolist()),
                removed_inputs=tuple(no_inputs.tolist()),
            )
    return found


def _kept(network: Network, model: nn.Module, masks: Mapping[str, Mapping[str, Tensor]]) -> Iterator[KeptChannels]:
    """The channels that masks have dead and that are still there, by layer and reason."""
    for name, module in model.named_modules():
        weight = masks.get(name, {}).get("weight")
        if weight is None or not is_weighted(module):
            continue
        read = links(module, weight != 0)
        sides: list[tuple[str, Tensor, Tensor, Callable[[Obstacle | None], str]]] = [
            ("filters", ~read.any(2).flatten().cpu(), network.filters[name], _why_filter(name)),
            ("inputs", ~read.any(1).flatten().cpu(), network.inputs[name], _why_input),
        ]
        for side, dead, left, why in sides:
            by_reason: dict[str, list[int]] = defaultdict(list)
            obstacles = network.obstacles.get((name, side), {})
            for index in left[dead[left]].tolist():
                reason = why(obstacles.get(index))
                if name not in network.still:
                    reason = "the layer does not run in eval mode"
                by_reason[reason].append(index)
            for reason, indices in by_reason.items():
                yield KeptChannels(name, side, tuple(indices), reason)


def _why_filter(name: str) -> Callable[[Obstacle | None], str]:
    def why(obstacle: Obstacle | None) -> str:
        if obstacle is None:
            return "autograd's trace does not reach the layer"
        if obstacle.structure:
            return obstacle.structure
        others = [other for other in obstacle.alive if other != name]
        if others and not obstacle.constant:
            return f"alive in {_some(others)}"
        what = "their constant reaches" if obstacle.constant else "they still carry something to"
        return f"{what} {_some(obstacle.readers)}"

    return why


def _why_input(obstacle: Obstacle | None) -> str:
    if obstacle is None:
        return "no layer before makes them"
    return obstacle.structure or f"still read by {_some(obstacle.readers)}"


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _tell(report: SpeedupReport, network: Network) -> None:
    _logger.info("speedup: %s", report)
    if report.layers:
        inside = [n for n, module in network.model.named_modules() if isinstance(module, nn.MultiheadAttention)]
        asleep = [n for n in network.inputs if n not in network.still and n.rpartition(".")[0] not in inside]
        if asleep:
            _logger.warning(
                "speedup: %s did not run in eval mode and may not fit the smaller layers before", _some(asleep)
            )
    elif report.kept:
        first = report.kept[0]
        _logger.warning(
            "speedup: nothing shrinks: every dead channel has to stay (%s: %s); the copy has its masks baked in",
            first.layer,
            first.reason,
        )
    else:
        _logger.warning(
            "speedup: nothing shrinks: the masks leave no filter and no input channel wholly 0 (unstructured masks "
            "never do); the copy has its masks baked in"
        )
