"""Which network a file's run prunes."""

from __future__ import annotations

from typing import Any

import pytest

from pwoa_plugin.models.config import ModelConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"checkpoint": "a.pt", "arch": "os:system"}, "names code, and a file never runs any"),
        ({"checkpoint": "robustbench:X", "arch": "lenet"}, "arch='lenet' does not go with robustbench:X"),
        ({"checkpoint": "a.pt", "arch": "lenet", "mean": [0.5]}, "mean and std go together"),
    ],
)
def test_what_cannot_be_meant(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**fields)


def test_a_network_of_robustbench_needs_no_architecture() -> None:
    assert ModelConfig(checkpoint="robustbench:X").arch is None
