from __future__ import annotations

from typing import Any

import pytest
import torch

from pwoa_plugin.method.sparsity import Block, Channel, Filter, NofM, Unstructured
from pwoa_plugin.nni.granularity import sparsity_set_of

CONV, LINEAR = (8, 4, 3, 3), (8, 12)


@pytest.mark.parametrize(
    ("granularity", "shape", "expected"),
    [
        ("out_channel", CONV, Filter()),
        ("in_channel", CONV, Channel()),
        ([1], CONV, Unstructured()),
        ([1, 1], LINEAR, Unstructured()),
        ([4, 1, 1, 1], CONV, Block(4, 1)),
        ([4, 1, 3, 3], CONV, Block(4, 9)),
        ([[2, 2]], LINEAR, Block(2, 2)),
        ([4], LINEAR, Block(1, 4)),
        ("2:4", LINEAR, NofM(2, 4)),
        ([[1], "back", -1], CONV, Filter()),  # what NNI makes of out_channel
        ([[-1, 1], "back", -1], CONV, Channel()),  # and of in_channel
        ([1, -1], LINEAR, Filter()),
        ([2, 1, -1, -1], CONV, Block(2, 9)),
        ([1], (8,), Unstructured()),  # a bias
    ],
)
def test_nnis_words_are_our_sets(granularity: Any, shape: tuple[int, ...], expected: Any) -> None:
    got = sparsity_set_of(granularity, shape, "layer")
    assert type(got) is type(expected)
    assert vars(got) == vars(expected)


def test_a_whole_kernel_block_is_what_nni_means() -> None:
    weight = torch.randn(CONV, generator=torch.Generator().manual_seed(0))
    sparsity_set = sparsity_set_of([4, 1, 3, 3], CONV, "layer")
    mask = sparsity_set.mask(weight, 3)
    assert int(mask[::4, :, 0, 0].sum()) == 3
    expected = weight.square().sum((2, 3)).view(2, 4, 4).sum(1).flatten()
    torch.testing.assert_close(sparsity_set.scores(weight), expected)


@pytest.mark.parametrize("granularity", [[1, 1, 2, 1], [1, 2, 1, 1], [2, 2, 2, 2, 2], [0], [16, 1, 1, 1]])
def test_granularities_that_fit_no_set_are_refused(granularity: Any) -> None:
    with pytest.raises(ValueError, match="fc9: granularity"):
        sparsity_set_of(granularity, CONV, "fc9")


@pytest.mark.parametrize("granularity", ["out_channel", "in_channel", "column", [4]])
def test_a_bias_has_no_structure(granularity: Any) -> None:
    with pytest.raises(ValueError, match=r"fc9: granularity .* needs a weight"):
        sparsity_set_of(granularity, (8,), "fc9")
