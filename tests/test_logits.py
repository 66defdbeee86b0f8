from __future__ import annotations

from types import SimpleNamespace

import torch

from pwoa_plugin._logits import logits_of


def test_logits_of_what_classifiers_return() -> None:
    logits = torch.zeros(2, 3)
    assert logits_of(logits) is logits
    assert logits_of({"logits": logits, "loss": 1}) is logits
    assert logits_of(SimpleNamespace(logits=logits)) is logits
    assert logits_of((logits, 1)) == (logits, 1)  # refused where logits are needed
