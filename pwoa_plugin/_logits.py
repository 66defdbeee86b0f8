"""Logits, out of whatever a classifier returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def logits_of(output: Any) -> Any:
    """The ``logits`` of a model's output that has them, as Transformers' models return; any other output as it is."""
    if isinstance(output, Mapping):
        return output.get("logits", output)
    return getattr(output, "logits", output)
