from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin import compare

Pair = tuple[Tensor, Tensor]
Models = Callable[[int], nn.Module]


def test_arguments_of_evaluate_go_with_a_curve(make_model: Models, held_out: Pair, eps: float) -> None:
    found = compare(
        {"one": make_model(10)},
        held_out,
        attacks="FGSM",
        eps=eps,
        sample=20,
        curve=[eps],
        curve_attack="PGD-2",
        alarms=False,
        batch_size=10,
        progress=False,
    )
    assert found.reports["one"].alarms is None
    assert found.curves["one"].eps == (0.0, eps)


class NoNumbers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 10), torch.nan)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 10)), r"later: the model does not take images \(1, 8, 8\)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "later: data: labels reach from"),
        (NoNumbers, "later: model returns NaN for 8 of 8 clean images; mend its weights"),
        (nn.Identity, "later: the model returns a tensor"),
    ],
)
def test_a_fault_of_a_later_model_is_said_before_the_first_is_attacked(
    model: nn.Module, held_out: Pair, make: Callable[[], nn.Module], said: str
) -> None:
    asked: list[int] = []
    model.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    with pytest.raises(ValueError, match=f"^{said}"):
        compare({"first": model, "later": make()}, held_out, eps=0.1, protocol="quick", progress=False)
    assert sum(asked) == 4 * 8  # at once, for their gradients, in another size, one by one


@pytest.mark.parametrize("bad", [{"curve": [0.1, 2]}, {"curve_attack": "PDG-20"}])
def test_a_curve_that_cannot_be_drawn_is_refused_before_any_image_is_asked(
    model: nn.Module, held_out: Pair, bad: dict[str, object]
) -> None:
    asked: list[int] = []
    model.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    whole = {"eps": 0.1, "protocol": "quick", "sample": 5, "curve": [0.1], "progress": False}
    with pytest.raises(ValueError, match="curve"):
        compare({"a": model}, held_out, **(whole | bad))  # type: ignore[arg-type]
    assert asked == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"models": {}}, "models is empty; give at least one by its name, as {'dense': model}"),
        ({"models": [nn.Identity()]}, "models is of type list; give at least one by its name"),
        ({"models": nn.Identity()}, "models is of type Identity; give at least one by its name"),
        ({"models": {" ": nn.Identity()}}, "models: ' ' is no name; give a text for each, as {'dense': model}"),
        ({"models": {1: nn.Identity()}}, "models: 1 is no name"),
        ({"atacks": "FGSM"}, "atacks: unknown key; did you mean attacks?"),
        ({"colour": "red"}, "colour: unknown key; known: .*curve"),
        ({"protocol": "slow"}, "protocol='slow' is unknown"),
        ({"curve": [0.1, 2]}, "curve: eps=2 is wider"),
        ({"curve": [0.1, -1]}, "curve=-1 is not a positive number"),
        ({"curve": [0.1], "curve_attack": "PDG-20"}, "curve_attack='PDG-20': .*did you mean PGD-20"),
        ({"eps": 8}, r"eps=8 .*did you mean 8/255"),
        ({"eps": None}, "eps is missing"),
        ({"attacks": "FGSM"}, "protocol='quick' and attacks are given"),
        ({"norm": "L3"}, "norm='L3' is unknown"),
        ({"seed": -1}, "seed=-1 "),
        ({"step_size": 0}, "step_size=0 "),
        ({"batch_size": 0}, "batch_size=0 "),
        ({"device": "nonsense"}, "device='nonsense' "),
        ({"mean": [0.5]}, "std is missing"),
        ({"state": ""}, "state='' names no file or folder"),
        ({"mean": [0.5] * 3, "std": [1] * 3}, r"mean=\[0.5, 0.5, 0.5\] does not fit"),
    ],
)
def test_bad_input_names_no_model(model: nn.Module, held_out: Pair, arguments: dict[str, object], said: str) -> None:
    whole = {"models": {"a": model}, "data": held_out, "eps": 0.1, "protocol": "quick", "sample": 5, "progress": False}
    with pytest.raises(ValueError, match=f"^{said}"):
        compare(**(whole | arguments))  # type: ignore[arg-type]


def test_the_width_of_one_hot_labels_is_checked(model: nn.Module, held_out: Pair) -> None:
    wide = nn.functional.one_hot(held_out[1], 13)
    with pytest.raises(ValueError, match=r"^a: data: labels are one-hot over 13 classes, and the model has 10"):
        compare({"a": model}, (held_out[0], wide), eps=0.1, attacks="FGSM", progress=False)
