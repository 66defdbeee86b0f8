"""`speedup`: a smaller network that computes what the masked one does."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._text import named
from .._wrapped import deep_copy, unwrapped
from ..errors import InputError
from ..masks import bake, check_masks
from ..method.constants import SAMPLES, ConstantChannels, find_constant_channels
from .groups import Network, connections, remove_dead
from .inputs import call, call_saying_where, check_model, largest_difference, map_tensors, random_batch
from .report import SpeedupReport, kept_channels, log_report, shrunk_layers
from .trace import Tracing

_logger = logging.getLogger(__name__)

#: Largest allowed difference of outputs, relative to the largest absolute output.
TOLERANCE = 1e-5


def speedup(
    model: nn.Module,
    masks: Mapping[str, Mapping[str, Tensor | None]],
    example_inputs: Any,
    *,
    zero_constants: bool = False,
) -> nn.Module:
    """A smaller copy of ``model`` without the channels that its masks set to 0.

    In eval mode its output is that of the model with the masks applied, to `TOLERANCE` of the largest absolute output.
    This is checked on ``example_inputs`` and on random ones, in float64 where the model runs in it. A channel goes if
    nothing reads it: the weights for it are 0 in every following layer, or it is 0 for every image. So:

    * a dead filter goes unless its bias, or what BatchNorm makes of it, still reaches a layer;
    * a live filter goes if every following layer ignores it (input-channel masks);
    * where masks disagree across a residual sum, a channel goes only if all of them have it at 0.

    Dead channels that stay are logged at INFO with the reason; `speedup_with_report` returns them. Masks of single
    weights free no channel: then a warning says that nothing shrinks. All zeros in the weights count, whatever their
    origin. Channels of the model's output stay. The small model has new parameters: give it a new optimizer.

    Args:
        model: the network, not wrapped by a compressor; of ``DataParallel`` and the like the one inside. It is not
            changed; the small one is a copy without gradients, with the same modes, ``requires_grad``, dtype and
            device.
        masks: NNI's, ``{module name: {parameter name: 0/1 tensor shaped as the parameter}}``.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of keyword arguments, on the model's device,
            batch first. The trace follows the path that the model takes for them.
        zero_constants: set the constants that alone keep dead filters to 0 (biases, weight and bias of BatchNorm), and
            remove these filters, too. That changes the output; the report and the log say by how much.

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
    model = unwrapped(model)
    check_model(model)
    checked = check_masks(model, masks, parameters_only=True)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with (
        torch.inference_mode(False),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        work, inputs = _runnable_copy(model, checked, example_inputs)
        reference = _Reference(work, inputs)
        if problem := reference.problem(work):
            raise InputError(
                f"model: called again on the same inputs, {problem}; in eval mode it must not be random or change them"
            )
        network = Network(work, _constants(work, inputs))
        Tracing(inputs).graph(work)
        network = _shrink(network, inputs, reference)
        zeroed = _zero_constants(network, inputs) if zero_constants else {}
        change = 0.0
        if zeroed:
            after = _Reference(network.model, inputs)
            change = largest_difference(reference.outputs[0], after.outputs[0])
            network.update(_constants(network.model, inputs))
            network, reference = _shrink(network, inputs, after), after
        small = _as_before(network.model, model)
    report = SpeedupReport(
        layers=shrunk_layers(network, model),
        kept=tuple(kept_channels(network, model, checked)),
        zeroed=zeroed,
        output_change=change,
        error=reference.error,
        parameters=(_parameters(model), _parameters(small)),
        history=tuple(network.history),
    )
    log_report(report, network)
    return small, report


class _Reference:
    """A model's outputs on the example inputs, and on random ones of their form."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.inputs = [inputs]
        self.outputs = [Tracing(inputs).run(model)]
        self.error = 0.0  # the largest relative difference that the last `problem` found
        if not all(tensor.isfinite().all() for tensor in self.outputs[0]):
            raise InputError(
                "the masked model's output on example_inputs is not finite; give a trained model and valid inputs"
            )
        with contextlib.suppress(Exception):  # some models take no random numbers; then the examples must do
            drawn = random_batch(inputs, torch.Generator().manual_seed(1))
            outputs = Tracing(drawn).run(model)
            if all(tensor.isfinite().all() for tensor in outputs):
                self.inputs.append(drawn)
                self.outputs.append(outputs)

    def problem(self, model: nn.Module) -> str:
        """How the outputs of ``model`` differ; empty if they do not."""
        self.error = 0.0
        for inputs, expected in zip(self.inputs, self.outputs, strict=True):
            found = Tracing(inputs).run(model)
            if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
                return "its output has another shape"
            self.error = max(self.error, largest_difference(expected, found))
        return "" if self.error <= TOLERANCE else f"its output differs by {self.error:.1e} of the largest value"


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _runnable_copy(
    model: nn.Module, masks: Mapping[str, Mapping[str, Tensor]], example_inputs: Any
) -> tuple[nn.Module, Any]:
    """A copy of the masked model, and inputs for it, in float64 if it runs so."""
    work = deep_copy(model).eval()
    bake(work, masks)
    inputs = map_tensors(lambda tensor: tensor.detach().clone(), example_inputs)
    with torch.no_grad():
        try:
            double = deep_copy(work).double()
            doubled = map_tensors(lambda x: x.double() if x.is_floating_point() else x, inputs)
            call(double, doubled)
            work, inputs = double, doubled
        except Exception:  # in its own dtype, then; if that fails, too, the error says where
            call_saying_where(work, inputs)
    return work, inputs


def _constants(model: nn.Module, inputs: Any, *, zero_constants: bool = False) -> ConstantChannels:
    random = torch.Generator().manual_seed(0)
    for samples in (SAMPLES, 2):

        def forward(samples: int = samples) -> Any:
            return call(model, random_batch(inputs, random, samples))

        try:
            return find_constant_channels(model, forward, connections, zero_constants=zero_constants)
        except Exception as error:
            failed = error
    raise InputError(
        f"example_inputs: the model does not run on batches of {SAMPLES} or 2 random samples ({named(failed)})"
    ) from failed


def _shrink(network: Network, inputs: Any, reference: _Reference) -> Network:
    """A smaller network, checked; ``network`` itself is not changed."""

    def removed_and_problem(attempt: Network, only: str | None = None) -> tuple[bool, str]:
        try:
            removed = remove_dead(attempt, inputs, only=only, skip=skip)
            while removed and only is None and remove_dead(attempt, inputs):
                pass  # a removal can free channels of earlier layers
            return removed, reference.problem(attempt.model)
        except Exception as error:
            return True, named(error)

    skip: dict[str, str] = {}
    attempt = copy.deepcopy(network)
    _, problem = removed_and_problem(attempt)
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
            removed, problem = removed_and_problem(attempt, name)
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
    """Set the constants that alone keep channels to 0; how many in each parameter were not 0 before."""
    plan = _constants(network.model, inputs, zero_constants=True)
    silent = {
        f"{name}.{target}": channels
        for name, module in network.model.named_modules()
        for target, channels in plan.constants_of(module).items()
        if module._parameters.get(target) is not None
    }

    # In a copy set all of them to 0, to see which of them free a channel.
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
    """Give the small model the dtypes, modes and ``requires_grad`` of ``model``."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        owner, _, target = name.rpartition(".")
        mine = getattr(small.get_submodule(owner), target)
        mine.data = mine.data.to(tensor.dtype)
        if isinstance(mine, nn.Parameter):
            mine.requires_grad_(tensor.requires_grad)
    for name, module in model.named_modules():
        small.get_submodule(name).training = module.training
    return small
