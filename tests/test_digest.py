"""Digests of networks and images."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pwoa_plugin._digest import digest_of, digest_of_tensors


def test_a_digest_is_of_names_dtypes_shapes_and_values() -> None:
    x = torch.arange(6.0)
    digests = {
        digest_of_tensors(x=x),
        digest_of_tensors(y=x),
        digest_of_tensors(x=x.double()),
        digest_of_tensors(x=x.view(2, 3)),
        digest_of_tensors(x=x + 1e-6),
        digest_of_tensors(x=torch.empty(0)),
    }
    assert len(digests) == 6
    strided = x.view(2, 3).t().contiguous().t()
    assert digest_of_tensors(x=strided) == digest_of_tensors(x=x.view(2, 3))


def test_networks_are_told_apart_by_buffers_too() -> None:
    model = nn.BatchNorm1d(3)
    other = copy.deepcopy(model)
    assert digest_of(model) == digest_of(other)
    other.running_mean += 1  # type: ignore[operator]
    assert digest_of(model) != digest_of(other)
