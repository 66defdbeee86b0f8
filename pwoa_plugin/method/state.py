"""What it takes to go on with a run as if it had never stopped: tensors, and facts that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import InputError
from .admm import ADMM

__all__ = ["State", "StateError"]


class StateError(InputError):
    """A state that does not fit the run it is given to."""


@dataclass
class State:
    """A run between two steps.

    Attributes:
        tensors: by dotted names; they may share memory with the run, which changes them at its next step.
        facts: JSON-ready.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below a name, without it."""
        return {name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(f"{prefix}.")}

    def add(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors below a name."""
        self.tensors |= {f"{prefix}.{name}": tensor.detach() for name, tensor in tensors.items()}


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
                f"the saved state has {what} {name} of shape {tuple(saved[name].shape)}, and this run "
                f"{tuple(target.shape)}; resume with the same model and config"
            )
        target.copy_(saved[name])


def optimizer_state(optimizer: Optimizer, parameters: list[nn.Parameter]) -> dict[str, Tensor]:
    """An optimizer's tensors (moments, momentum, counts), by the number of their parameter."""
    return {
        f"{i}.{key}": value
        for i, parameter in enumerate(parameters)
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def set_optimizer_state(optimizer: Optimizer, parameters: list[nn.Parameter], saved: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave.

    Raises:
        StateError: a tensor fits no parameter.
    """
    for name, value in saved.items():
        index, _, key = name.partition(".")
        if not index.isdigit() or int(index) >= len(parameters):
            raise StateError(f"the saved state has an optimizer entry {name!r} that fits no parameter of this model")
        parameter = parameters[int(index)]
        if key == "step" or value.shape != parameter.shape:
            optimizer.state[parameter][key] = value.clone()
        else:
            optimizer.state[parameter][key] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def admm_state(admm: ADMM) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Z and U by layer, and rho."""
    tensors = {f"{kind}.{name}": t for kind, part in (("z", admm.z), ("u", admm.u)) for name, t in part.items()}
    return tensors, {"rho": admm.rho, "updates": admm.updates}


def set_admm_state(admm: ADMM, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Put back what `admm_state` gave.

    Raises:
        StateError: the layers differ.
    """
    copy_into(admm_state(admm)[0], tensors, "ADMM tensors")
    admm.rho, admm.updates = float(facts["rho"]), int(facts["updates"])
