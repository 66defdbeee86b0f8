"""Forwards through ``torch.compile``: networks whose kernels are short wait for their launches on a GPU."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._text import one_line
from .._wrapped import unwrapped
from ..errors import InputError
from .hidden import forward_with_hidden, noting_inputs

BACKEND: str | Callable[..., Any] = "inductor"  # of tests: "aot_eager", which needs no compiler
Graph = Callable[[Tensor], tuple[Any, dict[str, Tensor]]]
_SHAPES = 2  # of batches: full ones, and an epoch's last


def begin_step(device: torch.device) -> None:
    """To be called before a step in which compiled networks run, when no gradient of the last one is held."""
    if device.type == "cuda":  # the tensors of the last step's graphs are given up
        torch.compiler.cudagraph_mark_step_begin()


class CompiledForward:
    """`forward_with_hidden`, compiled for each network, choice of layers and shape of batch.

    A run has four graphs, teacher and student with hidden layers and without, and four for an epoch's last batch.
    Batches of other shapes run uncompiled, and steps with input gradients, too: torch cannot differentiate a compiled
    function twice. On a GPU they are CUDA graphs, whose tensors live until `begin_step`.
    """

    def __init__(self) -> None:
        self._shapes: list[torch.Size] = []
        self._graphs: dict[tuple[int, tuple[str, ...], torch.Size], Graph] = {}

    def __call__(self, model: nn.Module, x: Tensor, layers: Sequence[str]) -> tuple[Any, dict[str, Tensor]]:
        if x.shape not in self._shapes and len(self._shapes) < _SHAPES:
            self._shapes.append(x.shape)
        if x.requires_grad or x.shape not in self._shapes:
            return forward_with_hidden(model, x, layers)
        key = (id(model), tuple(layers), x.shape)
        if key not in self._graphs:
            self._graphs[key] = graph_of(model, layers, x.device)
        try:
            return self._graphs[key](x)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
                raise
            said = one_line(str(error).strip().partition("\n")[0])  # further lines explain torch's own switches
            raise InputError(f"compile: torch.compile fails here ({said}); leave compile out") from error


def graph_of(model: nn.Module, layers: Sequence[str], device: torch.device) -> Graph:
    """`forward_with_hidden` of one network as one graph, which returns what hooks have noted while it was traced."""
    seen: dict[str, Tensor] = {}

    def forward(x: Tensor) -> tuple[Any, dict[str, Tensor]]:
        output = model(x)
        found = dict(seen)
        seen.clear()
        return output, found

    # torch counts compilations by code object; one of its own keeps this count from growing from run to run.
    own = types.FunctionType(forward.__code__.replace(), globals(), closure=forward.__closure__)
    mode = "reduce-overhead" if BACKEND == "inductor" and device.type == "cuda" else None
    graph: Graph = torch.compile(own, fullgraph=True, dynamic=False, backend=BACKEND, mode=mode)

    def run(x: Tensor) -> tuple[Any, dict[str, Tensor]]:
        # Compiled code does not run hooks; they are there for the tracing, and gone from the network in between.
        with noting_inputs(unwrapped(model), layers, seen.__setitem__):
            return graph(x)

    return run
