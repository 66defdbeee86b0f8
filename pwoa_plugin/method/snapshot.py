"""What it takes to resume a run: tensors, and facts that JSON can hold. Each part of a run gives and takes its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError


class StateError(InputError):
    """A saved state that does not fit the run that it is given to."""


@dataclass
class Snapshot:
    """The state of a run, or of a part of it, between two steps.

    Attributes:
        tensors: by dotted names; they may share memory with the run, which changes them at its next step.
        facts: JSON-ready; those of a part are under the part's name.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def put(self, name: str, part: Snapshot) -> None:
        """Add the snapshot of a part."""
        self.tensors |= {f"{name}.{key}": tensor.detach() for key, tensor in part.tensors.items()}
        if part.facts:
            self.facts[name] = part.facts

    def part(self, name: str) -> Snapshot:
        """The snapshot of a part; empty where there is none."""
        prefix = f"{name}."
        tensors = {key[len(prefix) :]: tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}
        return Snapshot(tensors, self.facts.get(name, {}))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@torch.no_grad()
def copy_into(targets: Mapping[str, Tensor], saved: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors by name into others, which keep their memory format (sums depend on it to the last bit).

    Raises:
        StateError: names or shapes differ.
    """
    if targets.keys() != saved.keys():
        odd = ", ".join(sorted(targets.keys() ^ saved.keys())[:3])
        raise StateError(
            f"the saved state has other {what} than this run ({odd}); resume with the same model and config"
        )
    for name, target in targets.items():
        if target.shape != saved[name].shape:
            raise StateError(
                f"the saved {what} {name} has shape {tuple(saved[name].shape)}, and this run's "
                f"{tuple(target.shape)}; resume with the same model and config"
            )
        target.copy_(saved[name])
