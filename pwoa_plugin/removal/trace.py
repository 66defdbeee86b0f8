"""Torch-Pruning's dependency graph of a model, with errors that name the module where the trace fails."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from .._modes import modes_kept
from .._text import named
from .._wrapped import forget_graphs
from ..errors import InputError
from .inputs import Forward, call, described, forward_saying_where, map_tensors, tensors_of


class RemovalError(InputError):
    """Channels cannot be removed: why, what else would help, and the setting that leaves layers whole."""

    def __init__(self, reason: str, cure: str, ignored: str = "") -> None:
        super().__init__(f"{reason}; {cure}" + (f", or list the layers before in {ignored}" if ignored else ""))
        self.reason, self.cure = reason, cure


class _LostTraceError(InputError):
    """Autograd finds no way from the weights to the output."""


@dataclass(frozen=True)
class Tracing:
    """How a model is traced: Torch-Pruning's arguments. Every graph gets copies, for Torch-Pruning changes them."""

    inputs: Any
    forward_fn: Forward | None = None
    output_transform: Callable[[Any], Any] | None = None
    unwrapped_parameters: Mapping[nn.Parameter, int] | Sequence[tuple[nn.Parameter, int]] | None = None
    customized_pruners: Mapping[Any, Any] | None = None
    ignored_params: Sequence[nn.Parameter] = ()

    @property
    def forward(self) -> Forward:
        """Calls the model. (Torch-Pruning's own call would first try the images of a batch as arguments.)"""
        return self.forward_fn or call

    def outputs(self, output: Any) -> list[Tensor]:
        """The tensors to trace back from; the product makes each a node of its own, also where a layer made it."""
        output = output if self.output_transform is None else self.output_transform(output)
        return [tensor * 1 for tensor in tensors_of(output) if tensor.requires_grad]

    def run(self, model: nn.Module) -> list[Tensor]:
        """The output's tensors for the example inputs, in eval mode and without gradients."""
        with modes_kept(model), torch.no_grad():
            return tensors_of(forward_saying_where(model.eval(), self._inputs_on(model), self.forward))

    def _inputs_on(self, model: nn.Module) -> Any:
        device = next((parameter.device for parameter in model.parameters()), None)
        return map_tensors(lambda tensor: tensor.to(device), self.inputs)

    def unwrapped(self) -> list[tuple[nn.Parameter, int]] | None:
        """``unwrapped_parameters`` as Torch-Pruning reads them."""
        return None if self.unwrapped_parameters is None else [*dict(self.unwrapped_parameters).items()]

    def graph(self, model: nn.Module) -> Any:
        """A new dependency graph; the model stays as it is. An InputError says where a trace fails."""
        try:
            return self._graph(model)
        except _LostTraceError:
            raise
        except Exception as error:
            raise InputError(
                f"model: Torch-Pruning cannot trace {self._where_it_fails(model)} ({said_of(error)}); "
                "rewrite that forward with plain operations, or prune by masks"
            ) from error

    def _graph(self, model: nn.Module) -> Any:
        lost: list[str] = []

        def outputs(output: Any) -> list[Tensor]:
            if found := self.outputs(output):
                return found
            raise _LostTraceError(
                f"model: autograd loses the trace in {lost[0] if lost else 'the model'}; return tensors that carry a "
                "gradient (no detach, no_grad or argmax)"
            )

        with contextlib.ExitStack() as hooks:
            for name, module in model.named_modules():

                def look(_: nn.Module, args: Any, output: Any, what: str = described(name, module)) -> None:
                    found = tensors_of(output)
                    if found and not any(tensor.requires_grad for tensor in found):
                        lost.append(what)

                hooks.enter_context(module.register_forward_hook(look))
            with traceable(model):
                return tp.DependencyGraph().build_dependency(
                    model,
                    self._inputs_on(model),
                    forward_fn=self.forward,
                    output_transform=outputs,
                    unwrapped_parameters=self.unwrapped(),
                    customized_pruners=None if self.customized_pruners is None else dict(self.customized_pruners),
                    ignored_params=list(self.ignored_params),
                    verbose=False,
                )

    def _where_it_fails(self, model: nn.Module) -> str:
        """The innermost module that Torch-Pruning cannot trace even on its own."""
        calls: list[tuple[str, nn.Module, Any, Any]] = []
        with contextlib.ExitStack() as hooks, traceable(model):
            for name, module in model.named_modules():

                def note(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                    calls.append((name, module, *map_tensors(Tensor.detach, (args, kwargs))))

                if name and any(True for _ in module.children()):
                    hooks.enter_context(module.register_forward_pre_hook(note, with_kwargs=True))
            with contextlib.suppress(Exception):
                self.forward(model, self.inputs)
        for name, module, args, kwargs in sorted(calls, key=lambda each: -each[0].count(".")):

            def forward(module: nn.Module, args: Any, kwargs: Any = kwargs) -> Any:
                return module(*args, **kwargs)

            try:
                Tracing(args, forward)._graph(module)
            except _LostTraceError:
                continue
            except Exception:
                return described(name, module)
        return described("", model)


def said_of(error: BaseException) -> str:
    """An error of Torch-Pruning's on one line; only its type if it speaks of the nodes of its graph."""
    text = named(error)
    return type(error).__name__ if re.search(r"_\w+Op\b|Unwrapped|\bNode\b", text) else text


@contextlib.contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Eval mode, and gradients on for every parameter, as a trace needs; both are restored on leaving."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(parameter.is_floating_point())
        with modes_kept(model), torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
            model.eval()
            warnings.simplefilter("ignore")
            yield
    finally:
        for parameter, asked in before.items():
            parameter.requires_grad_(asked)
        forget_graphs(model)


@contextlib.contextmanager
def grouping_errors() -> Iterator[None]:
    """Explains Torch-Pruning's IndexError, which it raises where it cannot follow channels through a layer."""
    try:
        yield
    except IndexError as error:
        raise RemovalError(
            f"Torch-Pruning cannot tell which channels go together ({said_of(error)}), as with a GRU or another layer "
            "that it does not know",
            "prune by masks, without removing channels",
        ) from error
