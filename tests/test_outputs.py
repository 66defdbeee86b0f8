"""What a network may answer, and what may be wrapped around it: one rule in all doors."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from conftest import EVERY_STEP
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from pwoa_plugin import PwoAConfig, PwoADistiller, PwoALoss, PwoAPruner, compare, evaluate, make_evaluator, speedup
from pwoa_plugin._digest import digest_of
from pwoa_plugin._weights import counted_weights
from pwoa_plugin.models import normalise_inputs
from pwoa_plugin.models.normalisation import normalisation_of
from pwoa_plugin.runs.size import size_report
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
    "of a key with a dot": (lambda f, z, t: {"heads.out": z, "heads": f}, "heads.out"),
    "named in the chosen part": (lambda f, z, t: (f, {"logits": z, "features": f}), 1),
    "named tuple": (lambda f, z, t: Pair(z, f), "answer"),
    "twice the same": (lambda f, z, t: {"answer": z, "logit": z}, None),
    "dataclass": (lambda f, z, t: Answer(z), None),
    "maps of one pixel": (lambda f, z, t: z[:, :, None, None], None),
    "auxiliary logits in training": (lambda f, z, t: (z, z.flip(1)) if t else z, 0),
}
REFUSED: dict[str, tuple[Callable[[Tensor, Tensor, bool], Any], Any, str]] = {
    "several": (lambda f, z, t: (f, z), None, r"several tensors .*0: \(\d+, 16\), 1: \(\d+, 3\).*set output="),
    "none": (lambda f, z, t: {"boxes": [1]}, None, r"returns a dict \(boxes: a list.*set output="),
    "classes": (lambda f, z, t: z.argmax(1), None, r"returns a tensor \(\d+,\) of torch.int64"),
    "sequences": (lambda f, z, t: z[:, None].expand(-1, 4, -1), None, r"returns a tensor \(\d+, 4, 3\)"),
    "one logit and features": (lambda f, z, t: (z[:, :1], f), None, r"several tensors .*0: \(\d+, 1\), 1: \(\d+, 16\)"),
    "one logit in a row": (lambda f, z, t: (z[:, 0], f), None, r"several tensors .*0: \(\d+,\), 1: \(\d+, 16\)"),
    "maps chosen": (lambda f, z, t: (z, f[:, None].expand(-1, 4, -1)), 1, r"output=1 is a tensor \(\d+, 4, 16\)"),
    "classes chosen": (lambda f, z, t: (z, z.argmax(1)), 1, r"output=1 is a tensor \(\d+,\) of torch.int64"),
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
    fields |= {"batch_size": 12, "epochs": 2, "eps": 0.1, "progress": False} | EVERY_STEP
    return PwoAConfig(sparsity=0.5, train_loader=data, output=output, **fields)


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
    pruner = PwoAPruner(model, entries, evaluator, eps=0.1, output=output, origin_loss_lambda=0.1, **EVERY_STEP)
    pruner.compress(max_steps=4)
    pruner.unwrap_model()
    return list(model.parameters())


def distilled(model: nn.Module, data: tuple[Tensor, Tensor], output: Any) -> list[Tensor]:
    batches = list(zip(data[0].split(12), data[1].split(12), strict=True))
    evaluator = make_evaluator(model, batches, torch.optim.SGD, 0.01, output=output)
    PwoADistiller(model, [], evaluator, model, eps=0.1, output=output, **EVERY_STEP).compress(4, None)
    return list(model.parameters())


def by_loss(model: nn.Module, data: tuple[Tensor, Tensor], output: Any) -> list[Tensor]:
    loss = PwoALoss(model, eps=0.1, output=output, **EVERY_STEP)
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


@functools.cache
def expected_of(door: Callable[..., list[Tensor]], form: Any = plain, outputs: int = 3) -> list[Tensor]:
    """What a door makes of a network whose answers need no choice; of one output for two classes."""
    return door(Net(form, outputs), images(max(2, outputs)), None)


TRAINED = [by_config, structured, by_list, distilled, by_loss]
DOORS = [*TRAINED, judged, compared]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_finds_the_same_logits(door: Callable[..., list[Tensor]], form: str) -> None:
    answer, output = FORMS[form]
    found = door(Net(answer), images(), output)
    if door is structured:  # keeps the layers of all outputs whole, those of the features too
        assert all(parameter.isfinite().all() for parameter in found)
        return
    for one, other in zip(expected_of(door), found, strict=True):
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

    model = Net(answer)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(ValueError, match=r"several tensors that may be logits .*set output="):
        door(model, images(), None)
    assert all(torch.equal(model.get_buffer(name), buffer) for name, buffer in before.items())


@pytest.mark.parametrize("door", [by_config, structured, distilled, by_loss])
def test_a_network_that_wants_more_in_training_mode_is_refused(door: Callable[..., list[Tensor]]) -> None:
    def answer(features: Tensor, logits: Tensor, training: bool, labels: Any = None) -> Tensor:
        return logits + labels.float() if training else logits

    with pytest.raises(ValueError, match=r"fails in training mode \(AttributeError.*let forward\(x\) return logits"):
        door(Net(answer), images(), None)


def pair_of_one(features: Tensor, z: Tensor, training: bool) -> Tensor:
    return torch.cat([-z / 2, z / 2], 1)


@pytest.mark.parametrize("form", [lambda z: z, lambda z: z.squeeze(1), lambda z: z[:, :, None, None]])
@pytest.mark.parametrize("door", DOORS)
def test_one_logit_is_the_pair_of_two_classes(
    door: Callable[..., list[Tensor]], form: Callable[[Tensor], Tensor]
) -> None:
    found = door(Net(lambda f, z, t: form(z), classes=1), images(classes=2), None)
    for one, other in zip(expected_of(door, pair_of_one, 1), found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("form", [lambda y: y.float(), lambda y: y.float()[:, None], lambda y: y[:, None]])
@pytest.mark.parametrize("door", DOORS)
def test_labels_of_one_logit_may_be_those_of_binary_cross_entropy(
    door: Callable[..., list[Tensor]], form: Callable[[Tensor], Tensor]
) -> None:
    x, y = images(classes=2)
    found = door(Net(plain, classes=1), (x, form(y)), None)
    for one, other in zip(expected_of(door, plain, 1), found, strict=True):
        torch.testing.assert_close(one, other)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "compiled": lambda model: torch.compile(model, backend="eager"),  # type: ignore[return-value]
    "both": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),  # type: ignore[arg-type]
    "one process": nn.parallel.DistributedDataParallel,
}


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For ``DistributedDataParallel``."""
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("door", [by_config, structured, by_list, distilled])
def test_wrappers_are_undone(door: Callable[..., list[Tensor]], wrapper: str) -> None:
    network = Net(plain)
    around = WRAPPERS[wrapper](network)
    door(around, images(), None)
    inside = around
    while inside is not network and hasattr(inside, "module"):
        inside = inside.module
    inside = getattr(inside, "_orig_mod", inside)
    for one, other in zip(expected_of(door), inside.parameters(), strict=True):
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


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_change_nothing_where_networks_are_compared(wrapper: str) -> None:
    x, network = images()[0], Net(plain)
    around = normalise_inputs(WRAPPERS[wrapper](network), [0.5], [0.25])
    assert digest_of(around) == digest_of(network)
    assert counted_weights(around).keys() == {"conv", "conv2", "out"}
    assert [layer.name for layer in size_report(around).layers] == ["conv", "conv2", "out"]
    assert normalisation_of(around) is not None
    loss = PwoALoss(around, eps=0.1)
    around.eval()
    torch.testing.assert_close(loss.teacher(x), around(x))
    small = speedup(around, {"module.conv": {"weight": torch.ones(8, 1, 3, 3)}}, x[:2])
    torch.testing.assert_close(small(x), around(x))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_student_has_the_loss_of_the_network_inside(wrapper: str) -> None:
    found = []
    for student in (Net(plain), WRAPPERS[wrapper](Net(plain))):
        loss = PwoALoss(Net(plain), eps=0.1, **EVERY_STEP)
        torch.manual_seed(0)
        found.append(loss(student, *images()))
        assert loss.hidden_layers == ["conv2", "out"]
    torch.testing.assert_close(*found)


def test_masks_with_a_prefix_are_taken_by_a_pruner() -> None:
    around = nn.DataParallel(Net(plain))
    evaluator = make_evaluator(around, [images()], torch.optim.SGD, 0.01)
    pruner = PwoAPruner(around, [{"op_names": ["conv"], "sparse_ratio": 0.5}], evaluator, eps=0.1)
    mask = torch.arange(72).view(8, 1, 3, 3) % 2
    pruner.update_masks({"module.conv": {"weight": mask}})
    pruner.unwrap_model()
    assert torch.equal(around.module.conv.weight != 0, mask.bool())


COMPUTED: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "prune": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "torch.nn.utils.prune.remove"),
    "weight_norm": (parametrizations.weight_norm, "torch.nn.utils.parametrize.remove_parametrizations"),
    "spectral_norm": (parametrizations.spectral_norm, "torch.nn.utils.parametrize.remove_parametrizations"),
    "old weight_norm": (torch.nn.utils.weight_norm, "torch.nn.utils.remove_weight_norm"),
    "old spectral_norm": (torch.nn.utils.spectral_norm, "torch.nn.utils.remove_spectral_norm"),
}


def computed(made_by: str) -> nn.Module:
    """A network with a layer whose weight is computed from others, after a forward that leaves a graph."""
    model = Net(plain)
    COMPUTED[made_by][0](model.conv2)
    model(images()[0]).sum().backward()
    model.zero_grad()
    return model


def by_types(model: nn.Module, **fields: Any) -> None:
    evaluator = make_evaluator(model, [images()], torch.optim.SGD, 0.01)
    selecting = {} if "op_names" in fields else {"op_types": ["Conv2d"]}
    PwoAPruner(model, [{**selecting, "sparse_ratio": 0.5, **fields}], evaluator, eps=0.1).compress(2)


MASKS = {"conv2": {"weight": torch.ones(16, 8, 3, 3)}}
REFUSE_COMPUTED: dict[str, Callable[[nn.Module], Any]] = {
    "config": lambda model: PwoAPruner(model, config(images(), None)),
    "list": lambda model: by_types(model, op_names=["conv2"]),
    "structured": lambda model: PwoAGroupPruner(model, config=config(images(), None, granularity="structured")),
    "layer before": lambda model: PwoAGroupPruner(model, images()[0][:2], ignored_layers=["conv2"]),
    "masks": lambda model: speedup(model, MASKS, images()[0][:2]),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("made_by", COMPUTED)
@pytest.mark.parametrize("door", REFUSE_COMPUTED)
def test_a_computed_weight_is_refused_by_its_layer_and_the_cure(door: str, made_by: str) -> None:
    cure = COMPUTED[made_by][1]
    with pytest.raises(ValueError, match=rf"conv2.* computed from other.*{cure}\(layer") as raised:
        REFUSE_COMPUTED[door](computed(made_by))
    assert "\n" not in str(raised.value)


def test_a_parametrized_layer_that_op_types_leave_out_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    by_types(computed("weight_norm"))
    assert "conv2 stays dense: its weight is computed from others (a parametrization); call torch" in caplog.text


WITH_COMPUTED: dict[str, Callable[[nn.Module], Any]] = {
    "config": lambda model: PwoAPruner(model, config(images(), None, exclude=["conv2"])).compress(),
    "list": lambda model: by_types(model, exclude_op_names=["conv2"]),
    "distilled": lambda model: distilled(model, images(), None),
    "loss": lambda model: by_loss(model, images(), None),
    "judged": lambda model: judged(model, images(), None),
    "speedup": lambda model: speedup(model, {"conv": {"weight": torch.ones(8, 1, 3, 3)}}, images()[0][:2]),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("made_by", COMPUTED)
@pytest.mark.parametrize("door", WITH_COMPUTED)
def test_what_does_not_touch_a_computed_weight_works(door: str, made_by: str) -> None:
    WITH_COMPUTED[door](computed(made_by))
