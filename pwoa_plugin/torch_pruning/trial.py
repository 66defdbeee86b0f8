"""What a model must be after a planned removal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from ..removal.inputs import ForwardError, largest_difference
from ..removal.trace import RemovalError, Tracing
from .checks import Fields
from .coupling import Plan
from .removals import Adapt, make_structure_undo, replay

LARGEST_DIFFERENCE = 1e-4  # of the output, relative, between channels removed and the same channels at 0


class Expectation:
    """What a model must be after a planned removal: the planned tensors, and the output of the channels at 0."""

    def __init__(self, model: nn.Module, plan: Plan, tracing: Tracing, fields: Fields, *, deterministic: bool) -> None:
        self.tracing, self.fields = tracing, fields
        self.tensors = plan.tensors(model)
        self.compares_outputs = deterministic and not plan.mixing
        with _at_zero(plan):
            self.outputs = tracing.run(model)

    def check(self, model: nn.Module) -> None:
        """Refuse the model after the removal if it does not run, or its tensors or outputs are not as expected."""
        sizes = (
            "sizes are written in the code there, as in view(-1, 512), split(64) or F.layer_norm(x, (64, 8, 8)), or "
            "it computes with a tensor of the old size"
        )
        cure = "use flatten(1), chunk, nn.LayerNorm or nn.BatchNorm2d, update sizes by adapt="
        try:
            outputs = self.tracing.run(model)
        except ForwardError as failed:
            raise RemovalError(
                f"with fewer channels {failed.where} fails ({failed.reason}): {sizes}", cure, self.fields.ignored
            ) from failed
        shapes, expected = ([tuple(each.shape) for each in some] for some in (outputs, self.outputs))
        if shapes != expected:
            raise RemovalError(
                f"with fewer channels the model's output is {shapes}, not {expected}: {sizes}",
                cure,
                self.fields.ignored,
            )
        for name, parameter in model.named_parameters():
            if not torch.equal(parameter, self.tensors[name]):
                raise RemovalError(
                    f"{name}: Torch-Pruning removes other channels than the projection has at 0",
                    "write its operations in another way",
                    self.fields.ignored,
                )
        worst = largest_difference(self.outputs, outputs) if self.compares_outputs else 0.0
        if worst > LARGEST_DIFFERENCE:
            raise RemovalError(
                f"removing channels is not the same as setting them to 0 (the outputs differ by {worst:.1e} of the "
                "largest): the code shuffles channels, or computes with all of them together in a function "
                "(F.layer_norm, mean(1)), which Torch-Pruning does not see",
                "use a module (nn.LayerNorm)",
                self.fields.ignored,
            )


@contextlib.contextmanager
def _at_zero(plan: Plan) -> Iterator[None]:
    """The planned channels are 0 while the context lasts."""
    masks = plan.masks()
    before = {parameter: parameter.data for parameter in masks}
    try:
        for parameter, mask in masks.items():
            parameter.data = parameter.data * mask
        yield
    finally:
        for parameter, data in before.items():
            parameter.data = data


def try_out(model: nn.Module, plan: Plan, expected: Expectation, adapt: Adapt | None) -> None:
    """Remove the planned channels, check the model, and give it its channels back."""
    restore = make_structure_undo(model)
    try:
        replay(model, expected.tracing.graph(model), plan.removals(), adapt)
        expected.check(model)
    finally:
        restore()
