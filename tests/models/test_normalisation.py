"""Normalisation inside a network."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conftest import TinyNet

from pwoa_plugin.models.normalisation import normalisation_of, normalise_inputs


def test_it_comes_before_the_network_and_goes_with_copies(trained: TinyNet) -> None:
    plain, x = copy.deepcopy(trained), torch.rand(3, 1, 8, 8)
    assert normalisation_of(trained) is None
    normalised = normalise_inputs(trained, [0.5], [0.25])
    assert normalised.state_dict().keys() == plain.state_dict().keys()
    for model in (normalised, copy.deepcopy(normalised), pickle.loads(pickle.dumps(normalised))):  # noqa: S301
        torch.testing.assert_close(model(x), plain((x - 0.5) / 0.25))
        found = normalisation_of(model)
        assert found is not None
        assert (found.mean, found.std) == ((0.5,), (0.25,))


def test_std_is_positive(trained: TinyNet) -> None:
    with pytest.raises(ValueError, match=r"model.std=\(0.0,\) is not positive"):
        normalise_inputs(trained, [0.5], [0.0])
