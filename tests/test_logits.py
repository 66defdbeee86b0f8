from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pwoa_plugin._logits import described, logits_of, part_of

LOGITS = torch.arange(6.0).view(2, 3)


def test_logits_are_found_by_their_name_or_as_the_only_matrix() -> None:
    assert logits_of(LOGITS, 2) is LOGITS
    assert logits_of({"logits": LOGITS, "loss": 1}, 2) is LOGITS
    assert logits_of(SimpleNamespace(logits=LOGITS, hidden=torch.zeros(2, 4)), 2) is LOGITS
    assert logits_of((torch.zeros(3, 2), LOGITS, torch.zeros(2, 3, dtype=torch.int64)), 2) is LOGITS


def test_a_batch_of_one_image_beside_a_loss() -> None:
    assert logits_of((torch.tensor(0.5), LOGITS[:1]), 1).shape == (1, 3)


def test_of_many_parts_six_are_listed() -> None:
    with pytest.raises(ValueError, match=r"5: \(2, 7\), and 3 more\); set output=") as raised:
        logits_of([torch.zeros(2, width) for width in range(2, 11)], 2)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("choice", [1, -1, "1", "-1"])
def test_a_part_is_chosen_by_index(choice: int | str) -> None:
    assert logits_of((torch.zeros(2, 5), LOGITS), 2, choice) is LOGITS


def test_a_choice_has_no_effect_on_a_tensor() -> None:
    assert logits_of(LOGITS, 2, 0) is LOGITS


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1, 1)])
def test_one_logit_is_a_pair_of_the_same_probability(shape: tuple[int, ...]) -> None:
    z = torch.tensor([0.3, -2.0])
    found = logits_of(z.view(shape), 2)
    torch.testing.assert_close(found.softmax(1)[:, 1], z.sigmoid())


@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_dimension_of_a_single_image_may_be_missing(shape: tuple[int, ...]) -> None:
    torch.testing.assert_close(logits_of(torch.tensor(0.6).view(shape), 1), torch.tensor([[-0.3, 0.3]]))
    assert torch.equal(logits_of(LOGITS[0], 1), LOGITS[:1])


@pytest.mark.parametrize(
    "found",
    [
        (torch.zeros(2), 3),
        torch.zeros(3),
        torch.zeros(1, 2),
        None,
        LOGITS.to(torch.cfloat),
        torch.zeros(2, 3, 4),
        7,
        (),
        torch.zeros(()),
    ],
)
def test_anything_else_is_refused_in_one_line(found: object) -> None:
    with pytest.raises(ValueError, match=r"the model returns .* for 2 images; return logits") as raised:
        logits_of(found, 2)
    assert "\n" not in str(raised.value)


def test_part_of_leaves_what_it_does_not_know() -> None:
    assert part_of((LOGITS, 1)) == (LOGITS, 1)
    assert part_of({"logits": LOGITS}) is LOGITS
    assert part_of((1, LOGITS), 1) is LOGITS


def test_described_names_the_parts() -> None:
    assert described({"a": LOGITS, "b": 1}) == "a dict (a: a tensor (2, 3) of torch.float32, b: a int)"
