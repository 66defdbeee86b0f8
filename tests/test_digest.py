from __future__ import annotations

import torch
from torch import nn

from pwoa_plugin._digest import digest_of, digest_of_tensors


def test_names_dtypes_shapes_and_values_count() -> None:
    x = torch.arange(6)
    digests = {
        digest_of_tensors(x=x),
        digest_of_tensors(y=x),
        digest_of_tensors(x=x.int()),
        digest_of_tensors(x=x.view(2, 3)),
        digest_of_tensors(x=x + 1),
        digest_of_tensors(x=x, y=x),
        digest_of_tensors(x=x[:0]),
    }
    assert len(digests) == 7
    assert digest_of_tensors(x=x.repeat(2, 1).t()[:, 0]) == digest_of_tensors(x=x)  # whatever the memory layout


def test_a_network_is_its_state() -> None:
    model = nn.BatchNorm2d(3)
    before = digest_of(model)
    assert before == digest_of(nn.BatchNorm2d(3))
    model.running_mean[0] = 1  # type: ignore[index]
    assert digest_of(model) != before
