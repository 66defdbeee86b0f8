"""The state from which a run resumes: tensors, and facts for JSON. Each part of a run has its own `Snapshot`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError


class StateError(InputError):
    """A saved state does not fit the run."""


@dataclass
class Snapshot:
    """The state of a run, or of a part of it, between two steps.

    Attributes:
        tensors: by dotted names; they may share memory with the run, whose next step changes them.
        facts: JSON-ready; a part's are under its name.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: dict[str, Any], **parts: Snapshot) -> Snapshot:
        """A snapshot with the snapshots of its parts."""
        whole = cls(facts=facts)
        for name, part in parts.items():
            whole.put(name, part)
        return whole

    def put(self, name: str, part: Snapshot) -> None:
        """Add the snapshot of a part."""
        self.tensors |= {f"{name}.{key}": tensor.detach() for key, tensor in part.tensors.items()}
        if part.facts:
            self.facts[name] = part.facts

    def part(self, name: str) -> Snapshot:
        """The snapshot of a part; empty if there is none."""
        prefix = f"{name}."
        tensors = {key[len(prefix) :]: tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}
        return Snapshot(tensors, self.facts.get(name, {}))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@torch.no_grad()
def copy_into(targets: Mapping[str, Tensor], saved: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors by name into others, which keep their memory format; StateError if names or shapes differ."""
    if targets.keys() != saved.keys():
        odd = ", ".join(sorted(targets.keys() ^ saved.keys())[:3])
        raise StateError(f"the saved state has other {what} than this run ({odd}); use the same model and config")
    for name, target in targets.items():
        if target.shape != saved[name].shape:
            shapes = f"shape {tuple(saved[name].shape)}, and this run's {tuple(target.shape)}"
            raise StateError(f"the saved {what} {name} has {shapes}; resume with the same model and config")
        target.copy_(saved[name])
