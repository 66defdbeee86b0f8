"""What a network must be: one rule in all doors. ``test_outputs.py`` has the rule for what it answers."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_outputs import DOORS, TRAINED, Net, by_config, by_list, by_loss, distilled, images, judged, plain, structured
from torch import Tensor, nn

from pwoa_plugin import (
    PwoALoss,
    PwoAPruner,
    evaluate,
    load_sparse,
    make_evaluator,
    save_sparse,
    speedup,
    to_semi_structured,
)
from pwoa_plugin.models import load_checkpoint
from pwoa_plugin.robustness import security_curve
from pwoa_plugin.torch_pruning import PwoAGroupPruner

Door = Callable[..., Any]


class Small(nn.Module):
    """A network that TorchScript compiles, and whose linear layers can be quantised."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.hidden, self.out = nn.Conv2d(1, 4, 3), nn.Linear(64, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.conv(x).relu().flatten(1)).relu())


class Lazy(Small):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.LazyLinear(8)


class Around(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Any:
        return self.inside(x)


class First(nn.Module):
    """A network without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]


def under_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return Small()


@functools.cache
def exported() -> nn.Module:
    return torch.export.export(Small().eval(), (images()[0],)).module()


def expanded() -> nn.Module:
    model = Small()
    model.conv.weight = nn.Parameter(torch.rand(1, 1, 3, 3).expand(4, 1, 3, 3))
    return model


def frozen_and_expanded() -> nn.Module:
    model = Small()
    model.scale = nn.Parameter(torch.ones(1).expand(4), requires_grad=False)  # a constant takes no step
    return model


def with_a_lock() -> nn.Module:
    model = Small()
    model.hidden.lock = threading.Lock()  # type: ignore[assignment]
    return model


def of_infinite_variance() -> nn.Module:
    model = Net(plain)
    model.norm.running_var[3] = float("inf")
    return model


class Sized(Small):
    """A network that refuses sizes by an error of its own, as timm's (AssertionError) and Hugging Face's do."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error("wants 224 x 224")


class Centring(Small):
    """A network that changes its images in place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).mul_(4))


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(Small(), {nn.Linear})


def student(model: Any, data: tuple[Tensor, Tensor], output: Any) -> None:
    PwoALoss(Small(), eps=0.1, output=output)(model, *data).backward()


def of_teacher(model: Any, data: tuple[Tensor, Tensor], output: Any) -> None:
    network = Net(plain)
    PwoALoss(model, eps=0.1, output=output)(network, *data).backward()


def curve(model: Any, data: tuple[Tensor, Tensor], output: Any) -> Any:
    return security_curve(model, data, eps=0.1, attack="FGSM", output=output, progress=False)


def group(model: Any, data: tuple[Tensor, Tensor], output: Any) -> None:
    PwoAGroupPruner(model, data[0][:2])


def smaller(model: Any, data: tuple[Tensor, Tensor], output: Any) -> None:
    speedup(model, {}, data[0][:2])


def loaded(model: Any, data: tuple[Tensor, Tensor], output: Any) -> None:
    load_checkpoint(model, "shipped:robust_lenet_mnist")


def prepared(model: Any, data: tuple[Tensor, Tensor], output: Any) -> None:
    PwoALoss(Small(), eps=0.1).prepare(model, data[0])


def of_teacher_model(model: Any, data: tuple[Tensor, Tensor], output: Any) -> None:
    evaluator = make_evaluator(network := Small(), [data], lr=0.1)
    PwoAPruner(network, [{"op_names": ["conv"], "sparse_ratio": 0.5}], evaluator, eps=0.1, teacher_model=model)


def sparse_saved(model: Any, data: tuple[Tensor, Tensor], output: Any) -> None:
    save_sparse(model, "never written.safetensors")


def sparse_loaded(model: Any, data: tuple[Tensor, Tensor], output: Any) -> None:
    load_sparse(model, "not there.safetensors")


def semi_structured(model: Any, data: tuple[Tensor, Tensor], output: Any) -> None:
    to_semi_structured(model)


TRAINING, TRACING, JUDGING = [*TRAINED, student, prepared], [group, smaller], [*DOORS[len(TRAINED) :], curve]
STORING = [loaded, sparse_saved, sparse_loaded, semi_structured]
NOT_TRAINING = [*JUDGING, *TRACING, *STORING, of_teacher, of_teacher_model]

#: What is refused where, and what is said.
NETWORKS: dict[str, tuple[Callable[[], Any], list[Any], str]] = {
    "state dict": (lambda: Small().state_dict(), [], "is of type OrderedDict, not a network; make the network, load"),
    "class": (lambda: Small, [], r"is the class Small; give an object of it, as Small\(\)"),
    "function": (lambda: lambda x: x, [], "is of type function; give a torch.nn.Module that calls it"),
    "nothing": (lambda: None, [of_teacher_model], "is missing; give a torch.nn.Module"),
    "file": (lambda: "a.pt", [], "is of type str, not a network; .*load_checkpoint"),
    "lazy": (Lazy, [], "hidden.weight has no values yet; run the model once"),
    "lazy and wrapped": (lambda: nn.DataParallel(Lazy()), [], ": hidden.weight has no values yet"),
    "meta": (lambda: Small().to("meta"), [], "conv.weight is on the meta device, without numbers"),
    "inference mode": (under_inference_mode, [], "conv.weight was made under torch.inference_mode.*deepcopy"),
    "TorchScript": (lambda: torch.jit.script(Small()), [*JUDGING, *STORING], "is a ScriptModule.* give the module"),
    "traced": (
        lambda: torch.jit.trace(Small(), images()[0]),
        [*JUDGING, *STORING],
        "is a ScriptModule.* give the module",
    ),
    "TorchScript inside": (lambda: Around(torch.jit.script(Small())), [*JUDGING, *STORING], "inside is a ScriptModule"),
    "frozen": (
        lambda: Small().requires_grad_(False),
        [*JUDGING, *TRACING, *STORING, of_teacher, of_teacher_model],
        "parameters are frozen",
    ),
    "no parameters": (First, NOT_TRAINING, "has no parameters"),
    "float16": (lambda: Small().half(), NOT_TRAINING, r"is float16: .*model.float\(\)"),
    "quantised": (quantised, NOT_TRAINING, "hidden is quantised, and no gradient passes"),
    "program of torch.export": (exported, [], "is a program of torch.export, which has no modes; give the module"),
    "expanded": (expanded, NOT_TRAINING, r"conv.weight holds one number in several places .*contiguous\(\)"),
    "infinite statistics": (of_infinite_variance, NOT_TRAINING, "norm.running_var is not finite before training"),
    "lock": (
        with_a_lock,
        [*JUDGING, *STORING, student, prepared, group],
        r"model: hidden.lock cannot be copied \(TypeError: .*lock.*__deepcopy__",
    ),
}
JUDGED = ["frozen", "no parameters", "TorchScript", "traced", "TorchScript inside", "float16", "expanded"]
JUDGED += ["infinite statistics"]
REFUSED = [
    pytest.param(door, name, id=f"{name}-{door.__name__}")
    for name, (_, allowed, _) in NETWORKS.items()
    for door in [*TRAINING, *NOT_TRAINING]
    if door not in allowed
]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("door", "name"), REFUSED)
def test_every_door_refuses_the_same_in_one_line(door: Door, name: str) -> None:
    make, _, message = NETWORKS[name]
    with pytest.raises(ValueError, match=message) as raised:
        door(make(), images(), None)
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", JUDGED)
@pytest.mark.parametrize("door", JUDGING)
def test_what_cannot_be_trained_is_judged(door: Door, name: str) -> None:
    assert door(NETWORKS[name][0](), images(), None)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_network_without_a_copy_is_judged() -> None:
    assert judged(with_a_lock(), images(), None)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_quantised_network_is_judged_without_gradients() -> None:
    options: dict[str, Any] = {"eps": 0.1, "alarms": False, "progress": False}
    attack = {"attack": "Square", "queries": 5}
    report = evaluate(quantised(), images(), attacks=[attack], **options)
    assert report.clean_correct.any()
    with pytest.raises(ValueError, match=r"FGSM needs gradients.*or use Square"):
        evaluate(quantised(), images(), attacks=["FGSM"], **options)


@pytest.mark.parametrize("door", [by_list, distilled, by_loss, by_config])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_trained(door: Door, dtype: torch.dtype) -> None:
    model = Net(plain).to(dtype)
    door(model, images(), None)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_a_frozen_student_is_compared_without_gradients() -> None:
    loss = PwoALoss(Small(), eps=0.1)
    frozen = Small().requires_grad_(False)
    with torch.no_grad():
        assert loss(frozen, *images()).isfinite()
    with pytest.raises(ValueError, match="student: all parameters are frozen"):
        loss(frozen, *images())


def test_a_copy_of_a_network_of_inference_mode_is_trained() -> None:
    by_loss(copy.deepcopy(under_inference_mode()), images(), None)


def one_layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


@pytest.mark.parametrize("door", [by_config, distilled, by_loss, student])
def test_a_network_without_hidden_layers_is_trained_without_their_terms(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door(one_layer(), images(), None)
    assert "the network has no hidden layer" in caplog.text


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"hsic": {"lambda_x": 1e-3}}, "hsic.lambda_x=0.001"),
        ({"distillation": {"feature_weight": 2.0}}, "distillation.feature_weight=2"),
    ],
)
def test_terms_of_hidden_layers_that_are_asked_for_are_refused(section: dict[str, Any], said: str) -> None:
    loss = PwoALoss(one_layer(), eps=0.1, **section)
    with pytest.raises(ValueError, match=f"{said}: the network has no hidden layer"):
        loss(one_layer(), *images())


@pytest.mark.parametrize("door", DOORS)
def test_a_choice_of_output_is_refused_alike(door: Door) -> None:
    with pytest.raises(ValueError, match="output=True: give an index, a key or an attribute"):
        door(Net(plain), images(), True)


@pytest.mark.parametrize("door", [by_config, structured, by_list, distilled, by_loss, *DOORS[len(TRAINED) :]])
def test_a_choice_of_output_without_effect_is_logged(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        door(Net(plain), images(), 7)
    assert "output=7 has no effect: the model returns one tensor" in caplog.text


@pytest.mark.parametrize("door", [*DOORS, group, smaller])
def test_sparse_logits_are_refused(door: Door) -> None:
    with pytest.raises(ValueError, match=r"a tensor \(\d+, 3\) of torch.float\d+ and torch.sparse_coo"):
        door(Net(lambda f, z, t: z.to_sparse()), images(), None)


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, ValueError, IndexError])
@pytest.mark.parametrize("door", [*DOORS, student, of_teacher, curve, group, smaller])
def test_sizes_that_a_network_refuses_are_told_alike(door: Door, error: type[Exception]) -> None:
    said = r"the model does not take images \(1, 6, 6\) \(wants 224 x 224\); give images of the shape"
    traced = "fails on them: .*wants 224 x 224; give what the model's forward takes"
    with pytest.raises(ValueError, match=traced if door in (structured, *TRACING) else said) as raised:
        door(Sized(error), images(), None)
    assert "\n" not in str(raised.value)


def test_a_network_that_changes_its_images_is_judged_on_the_images_given() -> None:
    class Apart(Centring):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.clone())

    for door in DOORS[len(TRAINED) :]:
        data = images()
        for one, other in zip(door(Centring(), data, None), door(Apart(), images(), None), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(data[0], images()[0])
    assert curve(Centring(), images(), None).n_robust == curve(Apart(), images(), None).n_robust


@pytest.mark.parametrize("door", TRAINED)
def test_a_network_that_changes_its_images_is_not_trained(door: Door) -> None:
    with pytest.raises(ValueError, match="the model changes its input images in place"):
        door(Centring(), images(), None)


@pytest.mark.parametrize("door", TRAINED)
def test_probabilities_are_told_where_logits_are_trained(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    door(Net(lambda f, z, t: z.log_softmax(1)), images(), None)
    assert "probabilities" not in caplog.text
    door(Net(lambda f, z, t: z.softmax(1)), images(), None)
    assert "the model returns probabilities, not logits" in caplog.text


@pytest.mark.parametrize("door", TRAINED)
def test_what_is_frozen_may_be_expanded(door: Door) -> None:
    door(frozen_and_expanded(), images(), None)
