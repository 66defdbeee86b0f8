"""Torch-Pruning's dependency graph of a model that is left as it was, and removals done again by it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from .._modes import modes_kept
from .._text import named
from ..errors import InputError
from ..removal.groups import output_nodes, trace
from ..removal.inputs import ForwardError, call, forward_saying_where, map_tensors, tensors_of

__all__ = [
    "Adapt",
    "ChosenGroup",
    "Removal",
    "TakenOut",
    "Tracing",
    "check_forward",
    "keep_history",
    "kept_as_before",
    "removals_from_json",
    "removals_to_json",
    "removed_from",
    "replay",
    "structure_of",
    "to_take_out",
]

#: Mends sizes that a model's own code holds, after its channels are gone.
Adapt = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Removal:
    """Channels of one layer, and what goes with them: an entry of Torch-Pruning's pruning history.

    Attributes:
        layer: its name.
        out: filters, not inputs.
        channels: their indices as the layer is at that time.
    """

    layer: str
    out: bool
    channels: tuple[int, ...]


def removals_to_json(removals: Sequence[Removal]) -> list[list[Any]]:
    """Removals as JSON holds them."""
    return [[removal.layer, removal.out, list(removal.channels)] for removal in removals]


def removals_from_json(entries: Any) -> list[Removal]:
    """What `removals_to_json` gave.

    Raises:
        ValueError: ``entries`` is something else.
    """
    try:
        for layer, out, channels in entries:
            if not isinstance(layer, str) or not isinstance(out, bool) or not all(type(i) is int for i in channels):
                raise TypeError(f"{layer!r} is no removal")
        return [Removal(layer, out, tuple(channels)) for layer, out, channels in entries]
    except (TypeError, ValueError) as error:
        raise InputError(f"these are no removals ({error})") from None


#: An attribute of a model that lost channels: it goes along with copies. Plain lists, which need no class of ours.
_HISTORY = "_pwoa_removals"


def removed_from(model: nn.Module) -> list[Removal]:
    """All that was removed from a model, by any pruner of ours and by `load_pruned`, in order."""
    return removals_from_json(getattr(model, _HISTORY, []))


def keep_history(model: nn.Module, removals: Sequence[Removal]) -> None:
    """Let `removed_from` answer this of the model."""
    if removals:
        setattr(model, _HISTORY, removals_to_json(removals))
    else:
        vars(model).pop(_HISTORY, None)


@dataclass(frozen=True)
class Tracing:
    """How a model is traced: Torch-Pruning's own arguments, which are copied for every graph.

    Attributes:
        inputs: what the forward takes.
        forward_fn, output_transform, unwrapped_parameters, customized_pruners, ignored_params: Torch-Pruning's.
    """

    inputs: Any
    forward_fn: Callable[[nn.Module, Any], Any] | None = None
    output_transform: Callable[[Any], Any] | None = None
    unwrapped_parameters: Mapping[nn.Parameter, int] | Sequence[tuple[nn.Parameter, int]] | None = None
    customized_pruners: Mapping[Any, Any] | None = None
    ignored_params: Sequence[nn.Parameter] = ()

    def on(self, device: torch.device) -> Tracing:
        """The same with inputs on a device."""
        return replace(self, inputs=map_tensors(lambda tensor: tensor.to(device), self.inputs))

    def forward(self, model: nn.Module, inputs: Any) -> Any:
        """The model's answer. (Torch-Pruning's own way first tries a tensor's images as arguments.)"""
        return (self.forward_fn or call)(model, inputs)

    def outputs(self, output: Any) -> list[Tensor]:
        """What is traced back from."""
        return output_nodes(output if self.output_transform is None else self.output_transform(output))

    def unwrapped(self) -> list[tuple[nn.Parameter, int]] | None:
        """Fresh, and in the form that Torch-Pruning reads."""
        given = self.unwrapped_parameters
        if given is None:
            return None
        return [(p, dim) for p, dim in (given.items() if isinstance(given, Mapping) else given)]

    def of_copy(self, memo: Mapping[int, Any]) -> Tracing:
        """The same for a model that `copy.deepcopy` made with this memo."""

        def twin(value: Any) -> Any:
            return memo.get(id(value), value)

        unwrapped, customized = self.unwrapped(), self.customized_pruners
        return Tracing(
            self.inputs,
            self.forward_fn,
            self.output_transform,
            None if unwrapped is None else [(twin(parameter), dim) for parameter, dim in unwrapped],
            None if customized is None else {twin(key): value for key, value in customized.items()},
            [twin(parameter) for parameter in self.ignored_params],
        )

    def graph(self, model: nn.Module) -> Any:
        """A new dependency graph.

        Raises:
            ValueError: the model cannot be traced; the message says where.
        """
        try:
            with kept_as_before(model):
                return tp.DependencyGraph().build_dependency(
                    model,
                    self.inputs,
                    forward_fn=self.forward,
                    output_transform=self.outputs,
                    unwrapped_parameters=self.unwrapped(),
                    customized_pruners=None if self.customized_pruners is None else dict(self.customized_pruners),
                    ignored_params=list(self.ignored_params),
                    verbose=False,
                )
        except Exception as error:
            with kept_as_before(model):
                trace(model, self.inputs)  # says where it fails
            raise InputError(f"model: Torch-Pruning cannot trace it ({named(error)})") from error


@contextlib.contextmanager
def kept_as_before(model: nn.Module) -> Iterator[None]:
    """Gradients on everywhere, as Torch-Pruning's trace needs; modes and ``requires_grad`` come back."""
    asked = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in asked:
            parameter.requires_grad_(parameter.is_floating_point())
        with modes_kept(model), torch.enable_grad(), warnings.catch_warnings():
            model.eval()
            warnings.simplefilter("ignore")
            yield
    finally:
        for parameter, ask in asked.items():
            parameter.requires_grad_(ask)


def structure_of(model: nn.Module) -> Callable[[], None]:
    """What puts a model's layers back to the sizes, parameters and buffers that they have now; these are not copied."""
    held = ("_parameters", "_buffers", "_modules")
    before = [(module, vars(module) | {name: dict(vars(module)[name]) for name in held}) for module in model.modules()]

    def restore() -> None:
        for module, content in before:
            vars(module).clear()
            vars(module).update(content)

    return restore


def to_take_out(model: nn.Module, graph: Any, removal: Removal) -> tuple[Any, int]:
    """Torch-Pruning's group of what goes with these channels, as the model is now, and how many channels there are.

    Raises:
        ValueError: the model has no such layer, or it has no such channels.
    """
    try:
        module = model.get_submodule(removal.layer)
        pruner = graph.get_pruner_of_module(module)
        function = pruner.prune_out_channels if removal.out else pruner.prune_in_channels
        channels = graph.get_out_channels(module) if removal.out else graph.get_in_channels(module)
    except (AttributeError, KeyError) as error:
        raise InputError(f"the model has no layer {removal.layer!r} with channels to remove") from error
    if not 0 < len(set(removal.channels)) == len(removal.channels) < channels or not (
        min(removal.channels) >= 0 and max(removal.channels) < channels
    ):
        raise InputError(f"{removal.layer} has {channels} channels here, and others are to be removed")
    return graph.get_pruning_group(module, function, list(removal.channels)), channels


#: Is told of a removal just before it happens: its group, and how many channels the group has.
TakenOut = Callable[[Any, int], None]


def replay(
    model: nn.Module,
    graph: Any,
    removals: Sequence[Removal],
    adapt: Adapt | None = None,
    note: TakenOut = lambda group, channels: None,
) -> None:
    """Take channels out of a model, in place, and mend the sizes that its code holds.

    Raises:
        ValueError: the model has no such layer, or it has no such channels.
    """
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for removal in removals:
        group, channels = to_take_out(model, graph, removal)  # anew: those before may have moved what is coupled
        note(group, channels)
        group.prune()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(asked[name])
    _adapt_sizes(model, adapt)


class ChosenGroup(tp.dependency.Group):
    """A group that a user is to prune, or not: whenever they do, it is taken out as the model is then.

    Args:
        group: Torch-Pruning's, to look at.
        take_out: removes channels of its root; all of the group's where it is given None.
    """

    def __init__(self, group: Any, take_out: Callable[[Sequence[int] | None], None]) -> None:
        super().__init__()
        self._group, self._DG = group.items, group._DG
        self._take_out, self._is_pruned = take_out, False

    def prune(self, idxs: Sequence[int] | None = None, record_history: bool = True) -> None:
        """Remove the group's channels, or these of its root's.

        Raises:
            ValueError: they are gone already, or cannot be removed; the model is as it was.
        """
        if self._is_pruned:
            raise InputError("prune: this group is pruned already")
        self._take_out(idxs)
        self._is_pruned = True


def _adapt_sizes(model: nn.Module, adapt: Adapt | None) -> None:
    """Sizes that the code of a model holds besides its layers: torchvision's ViT, and what ``adapt`` mends."""
    for module in model.modules():
        if isinstance(module, VisionTransformer):
            module.hidden_dim = module.conv_proj.out_channels
    if adapt is not None:
        adapt(model)


@torch.no_grad()
def check_forward(model: nn.Module, tracing: Tracing, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The tensors that a smaller model answers with.

    Raises:
        ValueError: it raises, or answers in other shapes.
    """
    layers = "list the layers before in ignored_layers"
    cure = (
        "sizes are written in the code there, as in view(-1, 512), or Torch-Pruning does not see it: use flatten(1), "
        f"mend them by adapt=, or {layers}"
    )
    try:
        outputs = tensors_of(forward_saying_where(model, tracing.inputs, tracing.forward))
    except ForwardError as failed:
        if any(size in failed.reason for size in ("normalized_shape", "running_mean")):
            cure = (
                "a normalisation has sizes there that Torch-Pruning does not follow (F.layer_norm, F.batch_norm, or "
                f"nn.LayerNorm of several dimensions): use nn.LayerNorm of the channels, nn.BatchNorm2d, or {layers}"
            )
        raise InputError(f"model: with fewer channels {failed.where} fails ({failed.reason}); {cure}") from failed
    if [output.shape for output in outputs] != list(shapes):
        found = ", ".join(str(tuple(output.shape)) for output in outputs)
        raise InputError(f"model: with fewer channels its output is {found}, not {tuple(shapes[0])}; {cure}")
    return outputs
