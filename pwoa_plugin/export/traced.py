"""A network on its example inputs, as exporters that trace it want it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._wrapped import deep_copy, unwrapped
from ..errors import InputError
from ..removal.inputs import call, call_saying_where, check_model, largest_difference, map_tensors, tensors_of

TOLERANCE = 1e-4  # relative to the largest absolute output


class _Whole(nn.Module):
    """A network together with the hooks on it, which exporters leave out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return self.network(x)


class Traced(NamedTuple):
    """A copy of a network in eval mode, and its inputs.

    Attributes:
        twin: the copy; its hooks are inside.
        arguments, keywords: the inputs; one of the two is empty or None.
        shapes: which dimensions are dynamic, as `torch.export` wants it; None if none is.
        samples: inputs, and what the network answers to them.
    """

    twin: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any] | None
    shapes: Any
    samples: list[tuple[Any, list[Tensor]]]

    def program(self) -> torch.export.ExportedProgram:
        """What `torch.export` makes of the copy."""
        with torch.no_grad():
            return torch.export.export(
                self.twin, self.arguments, self.keywords, dynamic_shapes=self.shapes, strict=False
            )

    @property
    def cure(self) -> str:
        """What a user may try where an exporter fails."""
        return "" if self.shapes is None else "; try batch=False, for files that take as many images as the example has"

    def check(self, run: Callable[[Any], list[Tensor]], what: str, tolerance: float) -> float:
        """The largest difference of ``run``'s outputs from the network's; InputError if above the tolerance."""
        worst = 0.0
        for inputs, expected in self.samples:
            found = [output.cpu() for output in run(inputs)]
            shapes = [[tuple(tensor.shape) for tensor in side] for side in (expected, found)]
            if shapes[0] != shapes[1]:
                raise InputError(f"{what} returns tensors of {shapes[1]}, the network {shapes[0]}")
            worst = max(worst, largest_difference(expected, found))
        if not worst <= tolerance:
            raise InputError(
                f"{what}'s output differs by {worst:.1e} of its largest value; give check=False to write it"
            )
        return worst


def traced(model: nn.Module, example_inputs: Any, *, batch: bool) -> Traced:
    """Run a copy of the network on its inputs and, where ``batch``, on one image more.

    Raises:
        InputError: the network cannot be traced, or does not take the inputs.
    """
    check_model(model := unwrapped(model))
    twin = deep_copy(model).eval()
    # Copies: torch.export keeps its inputs in the file, and of a slice the whole set of images that it is of.
    inputs = map_tensors(lambda tensor: tensor.detach().clone(), example_inputs)
    given = [inputs]
    if batch:
        if any(tensor.dim() and len(tensor) == 1 for tensor in tensors_of(inputs)):
            inputs = map_tensors(_one_more, inputs)  # torch.export takes a dimension of 1 for a constant
        given = [inputs, map_tensors(_one_more, inputs)]
    with torch.no_grad():
        call_saying_where(twin, given[0])
        samples = [(each, [output.cpu() for output in tensors_of(call(twin, each))]) for each in given]
    keywords = dict(inputs) if isinstance(inputs, Mapping) else None
    arguments = () if keywords is not None else tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    if len(arguments) == 1 and (twin._forward_pre_hooks or twin._forward_hooks):
        twin = _Whole(twin).eval()
    shapes: Any = None
    if batch:
        first = torch.export.Dim("batch")
        shapes = map_tensors(lambda tensor: {0: first} if tensor.dim() else None, keywords or arguments)
        if isinstance(twin, _Whole):
            shapes = {"x": shapes[0]}
    return Traced(twin, arguments, keywords, shapes, samples)


def _one_more(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[:1]]) if tensor.dim() else tensor
