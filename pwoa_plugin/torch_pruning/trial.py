"""A removal that is tried on a copy of the model first."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..removal.inputs import (
    ForwardError,
    call_saying_where,
    copy_of,
    forward_saying_where,
    largest_difference,
    tensors_of,
)
from ..removal.trace import Tracing
from .checks import Fields
from .coupling import Plan
from .removals import Adapt, replay

__all__ = ["Trial", "check_tensors"]

_logger = logging.getLogger(__name__)

_LARGEST_DIFFERENCE = 1e-4  # of the output, relative, between channels removed and the same channels at 0


class Trial:
    """Tries plans on copies of a model: the smaller model must run, and compute what the channels at 0 would.

    Args:
        model: the network; it is not changed.
        tracing: its example inputs and forward.
        adapt: updates sizes that the model's own code holds.
        fields: names of settings in messages.

    Raises:
        InputError: the model's output on the example inputs cannot be used.
    """

    def __init__(self, model: nn.Module, tracing: Tracing, adapt: Adapt | None, fields: Fields) -> None:
        self.tracing, self.adapt, self.fields = tracing, adapt, fields
        self._is_random = False
        with torch.no_grad():
            output = call_saying_where(copy_of(model), tracing.inputs, tracing.forward, name=fields.inputs)
        outputs = tensors_of(output)
        if not outputs or not all(tensor.numel() and tensor.isfinite().all() for tensor in outputs):
            raise InputError(
                f"model: its output on {fields.inputs} is empty or not finite; give a trained model and valid inputs"
            )

    def check(self, model: nn.Module, plan: Plan) -> None:
        """Try a removal.

        Raises:
            InputError: it fails, or does not remove what the plan says.
        """
        memo: dict[int, Any] = {}
        twin = copy_of(model, memo)
        tracing = self.tracing.on(next(twin.parameters()).device).of_copy(memo)
        zeroed = _outputs_with_zeros(model, plan, tracing)
        try:
            replay(twin, tracing.graph(twin), plan.removals(), self.adapt)
        except (AssertionError, RuntimeError, IndexError) as error:
            raise InputError(f"model: Torch-Pruning cannot remove these channels ({error})") from error
        outputs = self._outputs(twin, tracing, [output.shape for output in zeroed])
        check_tensors(twin, plan.tensors(model), self.fields)
        worst = largest_difference(zeroed, outputs)
        if not worst <= _LARGEST_DIFFERENCE and not plan.mixing and not self._answers_at_random(twin, tracing):
            raise InputError(
                "model: removing channels is not the same as setting them to 0 (the outputs differ by "
                f"{worst:.1e} of the largest): its code shuffles channels, or computes with all of them together in a "
                "function (F.layer_norm), which Torch-Pruning does not see; use a module (nn.LayerNorm), or list the "
                f"layers before in {self.fields.ignored}"
            )

    @torch.no_grad()
    def _outputs(self, model: nn.Module, tracing: Tracing, shapes: list[torch.Size]) -> list[Tensor]:
        """The outputs of a smaller model, which must have these shapes."""
        layers = f"list the layers before in {self.fields.ignored}"
        cure = (
            "sizes are written in the code there, as in view(-1, 512), or Torch-Pruning does not see it: use "
            f"flatten(1), update them by adapt=, or {layers}"
        )
        try:
            outputs = tensors_of(forward_saying_where(model, tracing.inputs, tracing.forward))
        except ForwardError as failed:
            if any(size in failed.reason for size in ("normalized_shape", "running_mean")):
                cure = (
                    "a normalisation has sizes there that Torch-Pruning does not follow (F.layer_norm, F.batch_norm, "
                    "or nn.LayerNorm of several dimensions): use nn.LayerNorm of the channels, nn.BatchNorm2d, or "
                    f"{layers}"
                )
            raise InputError(f"model: with fewer channels {failed.where} fails ({failed.reason}); {cure}") from failed
        if [output.shape for output in outputs] != shapes:
            found = ", ".join(str(tuple(output.shape)) for output in outputs)
            raise InputError(f"model: with fewer channels its output is {found}, not {tuple(shapes[0])}; {cure}")
        return outputs

    @torch.no_grad()
    def _answers_at_random(self, model: nn.Module, tracing: Tracing) -> bool:
        """Whether outputs on the same inputs differ; warns once that only weights are compared then."""
        if not self._is_random:
            once, again = (tensors_of(tracing.forward(model, tracing.inputs)) for _ in range(2))
            self._is_random = not largest_difference(once, again) <= _LARGEST_DIFFERENCE
            if self._is_random:
                _logger.warning(
                    "the model is random in eval mode, so its outputs with channels removed and with the same channels "
                    "at 0 cannot be compared; only weights are checked"
                )
        return self._is_random


@torch.no_grad()
def _outputs_with_zeros(model: nn.Module, plan: Plan, tracing: Tracing) -> list[Tensor]:
    """The outputs of a model with the planned channels at 0."""
    memo: dict[int, Any] = {}
    twin = copy_of(model, memo)
    for parameter, mask in plan.masks().items():
        memo[id(parameter)].mul_(mask)
    return tensors_of(tracing.forward(twin, tracing.inputs))


def check_tensors(model: nn.Module, expected: Mapping[str, Tensor], fields: Fields) -> None:
    """Check that what is left is what the projection keeps."""
    for name, parameter in model.named_parameters():
        same = parameter.shape == expected[name].shape and torch.equal(
            parameter.nan_to_num(), expected[name].nan_to_num()
        )
        if not same:
            raise InputError(
                f"{name}: Torch-Pruning removes other channels than the projection has at 0 ({tuple(parameter.shape)}, "
                f"not {tuple(expected[name].shape)}); list its layer in {fields.ignored}"
            )
