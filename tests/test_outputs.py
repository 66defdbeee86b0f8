"""What a network may answer, and what may be wrapped around it: one rule in all doors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from pwoa_plugin import PwoAConfig, PwoADistiller, PwoALoss, PwoAPruner, compare, evaluate, make_evaluator, speedup
from pwoa_plugin.torch_pruning import PwoAGroupPruner


class Pair(NamedTuple):
    answer: Tensor
    features: Tensor


@dataclass
class Answer:
    logits: Tensor
    loss: float = 0.0


class Net(nn.Module):
    """A network whose features ``(N, 16)`` and logits ``(N, 3)`` come out in some form."""

    def __init__(self, form: Callable[[Tensor, Tensor, bool], Any], classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.out = nn.Conv2d(8, 16, 3), nn.Linear(16, classes)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        features = F.relu(self.conv2(F.relu(self.norm(self.conv(x))))).flatten(2).mean(2)
        return self.form(features, self.out(features), self.training)


def plain(features: Tensor, logits: Tensor, training: bool) -> Tensor:
    return logits


FORMS: dict[str, tuple[Callable[[Tensor, Tensor, bool], Any], Any]] = {
    "tuple": (lambda f, z, t: (z, 7), None),
    "chosen by index": (lambda f, z, t: (f, z), 1),
    "chosen from the end": (lambda f, z, t: [f, z], "-1"),
    "mapping": (lambda f, z, t: {"logits": z, "features": f}, None),
    "chosen by key": (lambda f, z, t: {"class": z, "features": f}, "class"),
    "nested": (lambda f, z, t: {"heads": [f, z]}, "heads.1"),
    "named tuple": (lambda f, z, t: Pair(z, f), "answer"),
    "dataclass": (lambda f, z, t: Answer(z), None),
    "maps of one pixel": (lambda f, z, t: z[:, :, None, None], None),
    "auxiliary logits in training": (lambda f, z, t: (z, z.flip(1)) if t else z, 0),
}
REFUSED: dict[str, tuple[Callable[[Tensor, Tensor, bool], Any], Any, str]] = {
    "several": (lambda f, z, t: (f, z), None, r"several tensors .*0 \(\d+, 16\), 1 \(\d+, 3\).*set output="),
    "none": (lambda f, z, t: {"boxes": [1]}, None, r"returns a dict \(boxes: a list.*set output="),
    "classes": (lambda f, z, t: z.argmax(1), None, r"returns a tensor \(\d+,\) of torch.int64"),
    "sequences": (lambda f, z, t: z[:, None].expand(-1, 4, -1), None, r"returns a tensor \(\d+, 4, 3\)"),
    "no such key": (lambda f, z, t: {"a": z}, "b", r"output='b': the model returns a dict \(a: a tensor"),
    "no such index": (lambda f, z, t: (z,), 3, r"output=3: the model returns a tuple"),
}
IN_TRAINING: dict[str, tuple[Callable[[Tensor, Tensor, bool], Any], Any, str]] = {
    "auxiliary logits": (
        lambda f, z, t: (z, z.flip(1)) if t else z,
        None,
        r"several tensors that may be logits .*set output=",
    ),
}


def images(classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(24, 1, 6, 6, generator=generator), torch.randint(classes, (24,), generator=generator)


def config(data: Any, output: Any, **fields: Any) -> PwoAConfig:
    return PwoAConfig(
        sparsity=0.5, train_loader=data, batch_size=12, epochs=2, eps=0.1, output=output, progress=False, **fields
    )


def by_config(model: nn.Module, data: tuple[Tensor, Tensor], output: Any) -> list[Tensor]:
    PwoAPruner(model, config(data, output)).compress()
    return list(model.parameters())


def structured(model: nn.Module, data: tuple[Tensor, Tensor], output: Any) -> list[Tensor]:
    PwoAGroupPruner(model, config=config(data, output, granularity="structured")).compress()
    return list(model.parameters())


def by_list(model: nn.Module, data: tuple[Tensor, Tensor], output: Any) -> list[Tensor]:
    batches = list(zip(data[0].split(12), data[1].split(12), strict=True))
    evaluator = make_evaluator(model, batches, torch.optim.SGD, 0.01, output=output)
    entries = [{"op_names": ["conv"], "sparse_ratio": 0.5}]
    pruner = PwoAPruner(model, entries, evaluator, eps=0.1, output=output, origin_loss_lambda=0.1)
    pruner.compress(max_steps=4)
    pruner.unwrap_model()
    return list(model.parameters())


def distilled(model: nn.Module, data: tuple[Tensor, Tensor], output: Any) -> list[Tensor]:
    batches = list(zip(data[0].split(12), data[1].split(12), strict=True))
    evaluator = make_evaluator(model, batches, torch.optim.SGD, 0.01, output=output)
    PwoADistiller(model, [], evaluator, copy.deepcopy(model), eps=0.1, output=output).compress(4, None)
    return list(model.parameters())


def by_loss(model: nn.Module, data: tuple[Tensor, Tensor], output: Any) -> list[Tensor]:
    loss = PwoALoss(model, eps=0.1, output=output)
    model.train()
    torch.manual_seed(0)
    return [loss(model, *data).detach()]


def judged(model: nn.Module, data: tuple[Tensor, Tensor], output: Any) -> list[Tensor]:
    report = evaluate(model, data, eps=0.1, attacks=["FGSM", "APGD-CE"], output=output, alarms=False, progress=False)
    return [report.clean_correct, *(column.robust for column in report.attacks.values())]


def compared(model: nn.Module, data: tuple[Tensor, Tensor], output: Any) -> list[Tensor]:
    options: dict[str, Any] = {"eps": 0.1, "attacks": ["FGSM"], "alarms": False, "progress": False}
    comparison = compare({"a": model, "b": copy.deepcopy(model)}, data, output=output, **options)
    return [report.attacks["FGSM"].robust for report in comparison.reports.values()]


TRAINED = [by_config, structured, by_list, distilled, by_loss]
DOORS = [*TRAINED, judged, compared]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_finds_the_same_logits(door: Callable[..., list[Tensor]], form: str) -> None:
    answer, output = FORMS[form]
    if (door, form) == (structured, "dataclass"):
        pytest.skip("Torch-Pruning does not look into a dataclass; give output_transform")
    expected = door(Net(plain), images(), None)
    found = door(Net(answer), images(), output)
    if door is structured:  # keeps the layers of all outputs whole, those of the features too
        assert all(parameter.isfinite().all() for parameter in found)
        return
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_the_same(door: Callable[..., list[Tensor]], form: str) -> None:
    answer, output, message = REFUSED[form]
    model = Net(answer)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=message) as raised:
        door(model, images(), output)
    assert "\n" not in str(raised.value)
    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize("door", TRAINED)
def test_what_is_returned_in_training_mode_is_looked_at_before(door: Callable[..., list[Tensor]]) -> None:
    def answer(features: Tensor, logits: Tensor, training: bool) -> Any:
        return (logits, logits.flip(1)) if training else logits

    with pytest.raises(ValueError, match=r"several tensors that may be logits .*set output="):
        door(Net(answer), images(), None)


@pytest.mark.parametrize("form", [lambda z: z, lambda z: z.squeeze(1), lambda z: z[:, :, None, None]])
@pytest.mark.parametrize("door", DOORS)
def test_one_logit_is_the_pair_of_two_classes(
    door: Callable[..., list[Tensor]], form: Callable[[Tensor], Tensor]
) -> None:
    data = images(classes=2)

    def both(features: Tensor, z: Tensor, training: bool) -> Tensor:
        return torch.cat([-z / 2, z / 2], 1)

    expected = door(Net(both, classes=1), data, None)
    found = door(Net(lambda f, z, t: form(z), classes=1), data, None)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "compiled": lambda model: torch.compile(model, backend="eager"),  # type: ignore[return-value]
    "both": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("door", [by_config, structured, by_list, distilled])
def test_wrappers_are_undone(door: Callable[..., list[Tensor]], wrapper: str) -> None:
    expected, network = door(Net(plain), images(), None), Net(plain)
    around = WRAPPERS[wrapper](network)
    door(around, images(), None)
    inside = around
    while inside is not network and hasattr(inside, "module"):
        inside = inside.module
    inside = getattr(inside, "_orig_mod", inside)
    for one, other in zip(expected, inside.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_masks_have_the_names_inside(wrapper: str) -> None:
    around = WRAPPERS[wrapper](Net(plain))
    fields = config(images(), None, granularity="filter", include=["conv"])
    pruned, masks = PwoAPruner(around, fields).compress()
    assert pruned is around
    assert set(masks) == {"conv"}
    x = images()[0][:2]
    expected = speedup(around.module if wrapper == "AveragedModel" else around, masks, x)
    prefixed = {f"module.{name}": targets for name, targets in masks.items()}
    for small in (speedup(pruned, masks, x), speedup(pruned, prefixed, x)):
        assert small.conv.out_channels == expected.conv.out_channels == 4
        torch.testing.assert_close(small(x), expected(x))


@pytest.mark.parametrize("door", TRAINED)
def test_logits_without_a_gradient_are_told_before_a_step(door: Callable[..., list[Tensor]]) -> None:
    model = Net(lambda f, z, t: z.detach())
    with pytest.raises(ValueError, match=r"carry no gradient|no gradient comes from the model's output"):
        door(model, images(), None)
