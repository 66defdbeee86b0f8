from __future__ import annotations

import copy
import random
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pwoa_plugin.robustness import Attack, AttackRun, AttackSettings, AutoAttack, evaluate, load_protocol

Pair = tuple[Tensor, Tensor]


class Recorded(Attack):
    """A user's own attack, with no ART in it: applies ``change`` and keeps what it was given."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda x: x, *, name: str = "recorded") -> None:
        super().__init__(name=name)
        self.change = change
        self.given: list[Pair] = []

    def parameters(self, settings: AttackSettings) -> dict[str, Any]:
        return {}

    def build(self, estimator: PyTorchClassifier, settings: AttackSettings) -> EvasionAttack:
        raise NotImplementedError

    def run(
        self,
        estimator: PyTorchClassifier,
        images: Tensor,
        labels: Tensor,
        settings: AttackSettings,
        on_progress: Any = None,
    ) -> AttackRun:
        self.given.append((images, labels))
        return AttackRun(self.change(images), ("a note",))


class Constant(nn.Module):
    """Returns ``output`` for a batch of whatever size."""

    def __init__(self, output: Callable[[int], Any]) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output(len(x))


def test_accuracies_against_an_independent_count(model: nn.Module, held_out: Pair, eps: float) -> None:
    images, labels = held_out
    report = evaluate(model, held_out, eps=eps, attacks="FGSM", progress=False, alarms=False)
    model.eval()
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
    attacked = (images + eps * gradient.sign()).clamp(0, 1)
    n_clean = n_robust = 0
    for i in range(len(images)):
        right = model(images[i : i + 1]).argmax().item() == labels[i].item()
        withstands = model(attacked[i : i + 1]).argmax().item() == labels[i].item()
        n_clean += right
        n_robust += right and withstands
    assert report.clean == n_clean / 200
    assert report.attacks["FGSM"].accuracy == n_robust / 200
    assert 20 < n_robust < n_clean - 20


def test_attacks_go_at_the_clean_correct_images_and_wrong_ones_are_not_robust(
    model: nn.Module, held_out: Pair, eps: float
) -> None:
    images, labels = held_out
    attack = Recorded()
    report = evaluate(model, held_out, eps=eps, attacks=attack, progress=False, alarms=False)
    correct = report.clean_correct
    assert 0 < correct.sum() < len(images)
    assert len(attack.given) == 1
    assert torch.equal(attack.given[0][0], images[correct])
    assert torch.equal(attack.given[0][1], labels[correct])
    assert torch.equal(report.attacks["recorded"].robust, correct)
    assert report.notes == ("a note",)


def test_worst_case_is_below_every_column(model: nn.Module, held_out: Pair, eps: float) -> None:
    report = evaluate(model, held_out, eps=eps, attacks=["FGSM", "PGD-10", "CW"], progress=False, alarms=False)
    columns = [column.robust for column in report.attacks.values()]
    expected = [all(column[i] for column in columns) for i in range(200)]
    assert report.worst_case.robust.tolist() == expected
    assert report.worst_case.seconds == pytest.approx(sum(c.seconds for c in report.attacks.values()))


def test_a_loader_a_pair_and_arrays_give_the_same_verdicts(model: nn.Module, held_out: Pair, eps: float) -> None:
    images, labels = held_out
    kinds: list[Any] = [
        held_out,
        DataLoader(TensorDataset(images, labels), batch_size=37),
        [(images[:90], labels[:90].int()), (images[90:], labels[90:].int())],
        (images.double().numpy(), labels.numpy()),
    ]
    reports = [evaluate(model, data, eps=eps, attacks="PGD-10", progress=False, alarms=False) for data in kinds]
    for report in reports[1:]:
        assert torch.equal(report.attacks["PGD-10"].robust, reports[0].attacks["PGD-10"].robust)
    assert reports[0].config.n_images == 200


def test_a_column_does_not_depend_on_the_others(model: nn.Module, held_out: Pair, eps: float) -> None:
    alone = evaluate(model, held_out, eps=eps, attacks=["PGD-10"], progress=False, alarms=False)
    among = evaluate(model, held_out, eps=eps, attacks=["CW", "PGD-10"], progress=False, alarms=False)
    assert torch.equal(alone.attacks["PGD-10"].robust, among.attacks["PGD-10"].robust)


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_random_states_come_back(model: nn.Module, held_out: Pair, eps: float, fails: bool) -> None:
    def change(x: Tensor) -> Tensor:
        torch.rand(1), np.random.rand(), random.random()
        if fails:
            raise KeyError
        return x

    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    data = DataLoader(TensorDataset(*held_out), batch_size=64, shuffle=True)
    try:
        evaluate(model, data, eps=eps, attacks=["PGD-10", Recorded(change)], progress=False)
        assert not fails
    except KeyError:
        assert fails
    after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(p.grad is None for p in list(model.parameters())[1:])
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_it_runs_where_the_caller_has_gradients_off(model: nn.Module, held_out: Pair, eps: float, around: Any) -> None:
    expected = evaluate(model, held_out, eps=eps, attacks=["FGSM", "CW"], progress=False, alarms=False)
    with around():
        images = held_out[0].clone()
        report = evaluate(model, (images, held_out[1]), eps=eps, attacks=["FGSM", "CW"], progress=False, alarms=False)
    for name in ("FGSM", "CW"):
        assert torch.equal(report.attacks[name].robust, expected.attacks[name].robust)


def test_a_bf16_model_is_judged_as_it_is(model: nn.Module, held_out: Pair, eps: float) -> None:
    images, labels = held_out
    model.bfloat16()
    report = evaluate(model, held_out, eps=eps, attacks=["FGSM", "PGD-10", "CW"], progress=False, alarms=False)
    model.eval()
    assert torch.equal(report.clean_correct, model(images.bfloat16()).argmax(1) == labels)
    assert all(column.accuracy < report.clean - 0.1 for column in report.attacks.values())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x + 0.2, "moved a pixel by 0.2"),
        (lambda x: x - 0.09, r"outside \(0.0, 1.0\)"),
        (lambda x: x * torch.nan, "images with NaN pixels"),
        (lambda x: x[:-1], "returned images"),
    ],
)
def test_an_attack_that_breaks_its_terms_is_named(
    model: nn.Module, held_out: Pair, change: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(RuntimeError, match=f"^escapee .*{message}"):
        evaluate(model, held_out, eps=0.1, attacks=Recorded(change, name="escapee"), progress=False, alarms=False)


def test_rounding_at_the_edge_of_the_ball_is_no_breach(model: nn.Module, held_out: Pair) -> None:
    attack = Recorded(lambda x: (x + 0.1 + 5e-6).clamp(0, 1))
    report = evaluate(model, held_out, eps=0.1, attacks=attack, progress=False, alarms=False)
    assert report.attacks["recorded"].n_robust > 0


def test_a_model_that_is_right_about_nothing_is_attacked_nowhere(held_out: Pair) -> None:
    images, labels = held_out
    attack = Recorded()
    model = Constant(lambda n: F.one_hot(torch.full((n,), 9), 10).float())
    report = evaluate(model, (images[labels < 9], labels[labels < 9]), eps=0.1, attacks=attack, progress=False)
    assert attack.given == []
    assert (report.clean, report.worst_case.accuracy, report.worst_case.low) == (0, 0, 0)


def test_a_model_that_an_attack_drives_to_nan_is_not_robust(held_out: Pair) -> None:
    class Fragile(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = F.one_hot(torch.zeros(len(x), dtype=torch.int64), 10).float()
            logits[(x == 0.5).flatten(1).all(1), 0] = torch.nan
            return logits

    images = torch.full((4, 1, 2, 2), 0.45)
    attack = Recorded(lambda x: torch.where(torch.arange(4).view(4, 1, 1, 1) < 1, 0.5, x))
    report = evaluate(Fragile(), (images, torch.zeros(4, dtype=torch.int64)), eps=0.1, attacks=attack, progress=False)
    assert report.attacks["recorded"].robust.tolist() == [False, True, True, True]


def test_progress_is_on_stderr_or_nowhere(
    model: nn.Module, held_out: Pair, eps: float, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluate(model, held_out, eps=eps, attacks=["FGSM", "PGD-10"])
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "PGD-10" in shown.err
    evaluate(model, held_out, eps=eps, attacks=["FGSM", "PGD-10"], progress=False)
    assert capfd.readouterr() == ("", "")


def test_the_report_states_what_was_run(model: nn.Module, held_out: Pair) -> None:
    report = evaluate(
        model, held_out, eps=0.1, attacks=["PGD-10"], step_size=0.03, batch_size=50, seed=9, progress=False
    )
    content = report.to_dict()["config"]
    assert content == {
        "eps": 0.1,
        "norm": "Linf",
        "output": None,
        "pixel_range": [0.0, 1.0],
        "attacks": {"PGD-10": {"steps": 10, "step_size": 0.03, "restarts": 1, "loss": "cross-entropy"}},
        "seed": 9,
        "n_images": 200,
        "n_classes": 10,
        "batch_size": 50,
        "device": "cpu",
        "protocol": "custom",
        "protocol_version": 1,
        "mean": None,
        "std": None,
        "images_sha256": content["images_sha256"],
    }


ONES = torch.ones(4, dtype=torch.int64)
GREY = torch.full((4, 1, 8, 8), 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0}, "eps=0 "),
        ({"eps": -0.1}, "eps=-0.1 "),
        ({"eps": float("nan")}, "eps=nan "),
        ({"eps": "eight"}, "eps='eight' is not a positive number"),
        ({"eps": True}, "eps=True: give a number, not true or false"),
        ({"epsilon": 0.1}, "epsilon: unknown key; did you mean eps"),
        ({"curve": [0.1]}, "curve: only compare draws a curve"),
        ({"eps": None}, "eps is missing"),
        ({"eps": 8}, r"eps=8 .*did you mean 8/255\?"),
        ({"eps": 8 / 255, "pixel_range": (0, 255)}, r"eps=0.031.* is next to nothing in .*did you mean 8\?"),
        ({"eps": 300, "pixel_range": (0, 255)}, r"eps=300 is wider than pixel_range=\(0.0, 255.0\)"),
        ({"pixel_range": (1.0, 0.0)}, r"pixel_range=\(1.0, 0.0\)"),
        ({"pixel_range": 1.0}, r"pixel_range=1.0: give \(low, high\)"),
        ({"step_size": 0.0}, "step_size=0.0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"seed": -1}, "seed=-1"),
        ({"device": "nonsense"}, "device='nonsense'"),
        ({"device": "cuda:77"}, "device='cuda:77'"),
        ({"attacks": []}, "attacks is empty"),
        ({"attacks": "pgd-2"}, r"attacks: 'pgd-2' is not a known attack; did you mean PGD-2\?"),
        ({"attacks": "cw_5_t"}, r"attacks: 'cw_5_t' is not a known attack; did you mean CW-5-T\?"),
        ({"attacks": lambda x: x}, "attacks: <function .*lambda>> is not an attack"),
        ({"colour": "red"}, "colour: unknown key; known: protocol, .*alarms$"),
        ({"pixel_range": "01"}, r"pixel_range='01': give \(low, high\)"),
        ({"attacks": ["PGD-20", "PGD20"]}, "attacks: 'PGD20' is not a known attack; did you mean PGD-20"),
        ({"attacks": ["FGSM", "FGSM"]}, "attacks: 'FGSM' comes twice"),
        ({"attacks": [3]}, "attacks: 3 is not an attack"),
        ({"model": Constant(lambda n: (torch.zeros(n), 3))}, r"the model returns a tuple \(0: a tensor"),
        ({"model": Constant(lambda n: {"scores": torch.zeros(n)})}, "the model returns a dict .*set output="),
        ({"model": Constant(lambda n: torch.full((n, 10), torch.nan))}, "model returns NaN for 4 of 4"),
        ({"data": []}, "data holds no images"),
        ({"data": (GREY[:0], ONES[:0])}, "data gives an empty batch"),
        ({"data": [GREY]}, r"data gives no labels .*; give \(images, labels\)"),
        ({"data": iter(TensorDataset(GREY, ONES))}, r"data: images are a tensor \(1, 8, 8\).*DataLoader"),
        ({"data": (GREY.flatten(1), ONES)}, r"data: images are a tensor \(4, 64\)"),
        ({"data": ((GREY * 255).int(), ONES)}, r"data: images are a tensor .* of torch.int32; give .* uint8 from 0"),
        ({"data": (GREY * 3, ONES)}, r"data: pixels reach from 1.5 to 1.5, outside pixel_range=\(0.0, 1.0\)"),
        ({"data": (GREY - 0.51, ONES)}, r"data: pixels reach from -0.01 to -0.01"),
        ({"data": (GREY * torch.nan, ONES)}, "data: images hold NaN"),
        ({"data": [(GREY, ONES), (GREY[..., :7], ONES)]}, "data: images have shapes"),
        ({"data": (GREY, ONES.float())}, r"data: labels are a tensor \(4,\) of torch.float32; give class indices"),
        ({"data": (GREY, ONES.bool())}, r"data: labels are a tensor \(4,\) of torch.bool; give class indices"),
        ({"data": (GREY, F.one_hot(ONES, 7))}, "data: labels are one-hot over 7 classes, and the model has 10"),
        ({"data": (GREY, F.one_hot(ONES, 10) * 2)}, r"data: labels are a tensor \(4, 10\).*argmax\(1\)"),
        (
            {"data": (GREY, torch.zeros(4, 10))},
            r"data: labels are a tensor \(4, 10\) of torch.float32 and are not one-hot",
        ),
        ({"data": (GREY * 500, ONES)}, r"data: pixels reach from 250 to 250.*divide them by 255"),
        ({"data": (GREY / 255, ONES)}, r"data: pixels reach 0.001961 at most.*divided by 255 once too often"),
        ({"data": (GREY, ONES), "pixel_range": (0, 255)}, r"data: pixels reach 0.5 at most.*divided by 255 once"),
        ({"protocol": "standrad", "attacks": None}, "protocol='standrad' is unknown; did you mean standard"),
        ({"protocol": "standard"}, "protocol='standard' and attacks are given"),
        ({"protocol": load_protocol("quick")}, "protocol='quick' and attacks are given"),
        ({"norm": "L3"}, "norm='L3' is unknown; use Linf or L2"),
        ({"norm": "L2", "eps": 9}, r"eps=9 is wider.*did you mean 9/255"),
        ({"sample": 5}, "sample=5: there are 4 images; give 1 to 4"),
        ({"sample": 0}, "sample=0 is not a count"),
        ({"state": ""}, "state='' names no file or folder"),
        ({"mean": [0.5]}, "std is missing; mean and std go together"),
        ({"mean": [0.5] * 3, "std": [1] * 3}, r"mean=\[0.5, 0.5, 0.5\] does not fit images of 1 channels"),
        ({"mean": [[0.5] * 3] * 2, "std": 1}, r"mean has the shape \(2, 3\); give one number for each channel"),
        ({"mean": [0.5], "std": ["a"]}, r"std=\['a'\] is not one number for each channel"),
        ({"mean": [0.5], "std": [0]}, r"std=\(0.0,\) is not positive"),
        ({"data": (GREY, ONES[:3])}, "data: 4 images and 3 labels; give as many of each"),
        (
            {"data": (GREY, ONES * 10)},
            "data: labels reach from 10 to 10, and the model has 10 classes; give indices from 0 to 9",
        ),
        ({"data": (GREY, -ONES)}, "data: labels reach from -1 to -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_in_one_line_before_any_attack(
    model: nn.Module, arguments: dict[str, Any], message: str
) -> None:
    attack = Recorded()
    modes = [module.training for module in model.modules()]
    whole: dict[str, Any] = {"model": model, "data": (GREY, ONES), "eps": 0.1, "attacks": [attack]}
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        evaluate(**{**whole, **arguments}, progress=False)
    assert "\n" not in str(caught.value)
    assert attack.given == []
    assert [module.training for module in model.modules()] == modes


class Wrapped(nn.Module):
    """A model whose logits come in another form."""

    def __init__(self, model: nn.Module, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.model(x))


class Output(OrderedDict[str, Tensor]):
    """What Hugging Face's ModelOutput is: a mapping, with attributes."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__(tensors)
        self.__dict__ |= tensors


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda z: (z, z.mean()),
    "features too": lambda z: [z[:, :, None], z],
    "ModelOutput": lambda z: Output(logits=z, hidden=z[:, None]),
    "named tuple": lambda z: namedtuple("Out", ["logits", "aux"])(z, None),
    "object": lambda z: SimpleNamespace(logits=z),
    "log-softmax": lambda z: F.log_softmax(z, 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_in_any_form_give_the_same_verdicts(model: nn.Module, held_out: Pair, eps: float, form: str) -> None:
    arguments = {"eps": eps, "attacks": ["FGSM", "PGD-10", "CW", "APGD-CE"], "sample": 80, "progress": False}
    plain = evaluate(model, held_out, **arguments, alarms=False)
    report = evaluate(Wrapped(model, FORMS[form]), held_out, **arguments)
    assert torch.equal(report.clean_correct, plain.clean_correct)
    assert report.alarms == ()
    for name, column in report.attacks.items():
        differ = int((column.robust != plain.attacks[name].robust).sum())
        assert differ <= (1 if form == "log-softmax" else 0)  # rounding differs there


def test_a_hugging_face_classifier(held_out: Pair) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=10
    )
    torch.manual_seed(0)
    net = transformers.ResNetForImageClassification(config)
    report = evaluate(net, held_out, eps=0.1, attacks=["FGSM", "PGD-10"], progress=False, alarms=False)
    with torch.no_grad():
        assert torch.equal(report.clean_correct, net.eval()(held_out[0]).logits.argmax(1) == held_out[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalisation_given_apart_is_that_inside(
    make_model: Callable[[int], nn.Module], held_out: Pair, eps: float, dtype: torch.dtype
) -> None:
    inside = nn.Sequential(Normalise(), make_model(10)).to(dtype)
    arguments = {"eps": eps, "attacks": ["PGD-10", "APGD-CE"], "sample": 60, "progress": False, "alarms": False}
    expected = evaluate(inside, held_out, **arguments)
    report = evaluate(make_model(10).to(dtype), held_out, mean=[0.25], std=[0.5], **arguments)
    assert (report.config.mean, report.config.std, report.config.eps) == ((0.25,), (0.5,), eps)
    for name, column in report.attacks.items():
        assert int((column.robust != expected.attacks[name].robust).sum()) <= (0 if dtype == torch.float32 else 3)
    from pwoa_plugin.models import normalise_inputs

    twice = normalise_inputs(make_model(10), [0.25], [0.5])
    with pytest.raises(ValueError, match="the model normalises already"):
        evaluate(twice, held_out, mean=[0.25], std=[0.5], **arguments)


class Normalise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.25) / 0.5


def test_one_hot_labels_are_labels(model: nn.Module, held_out: Pair, eps: float) -> None:
    images, labels = held_out
    plain = evaluate(model, held_out, eps=eps, attacks="FGSM", progress=False, alarms=False)
    for kind in (torch.int64, torch.float32, torch.bool):
        one_hot = F.one_hot(labels, 10).to(kind)
        report = evaluate(model, (images, one_hot), eps=eps, attacks="FGSM", progress=False, alarms=False)
        assert torch.equal(report.worst_case.robust, plain.worst_case.robust)


def test_every_attack_is_counted_in_images_through_the_model(model: nn.Module, held_out: Pair, eps: float) -> None:
    seen = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(inputs[0])

    handle = model.register_forward_pre_hook(count)
    arguments = {"eps": eps, "attacks": ["FGSM", "PGD-10", "APGD-CE"], "sample": 60, "progress": False}
    report = evaluate(model, held_out, **arguments, alarms=False)
    handle.remove()
    # Clean images, in two batch sizes; one by one; a few for their gradients.
    assert seen == 60 + 60 + 32 + 8 + report.worst_case.forwards
    n = int(report.clean_correct.sum())
    assert report.attacks["PGD-10"].forwards >= 11 * n


def test_what_felled_an_image_is_kept(model: nn.Module, held_out: Pair, eps: float) -> None:
    report = evaluate(model, held_out, eps=eps, attacks=["FGSM", "PGD-10"], progress=False, alarms=False)
    with torch.no_grad():
        answers = model.eval()(report.adversarial).argmax(1)
    assert torch.equal(answers, report.answers)
    assert torch.equal(answers == held_out[1], report.worst_case.robust)
    robust = report.worst_case.robust
    assert torch.equal(report.adversarial[robust], held_out[0][robust])
    assert (report.adversarial - held_out[0]).abs().max() <= eps + 1e-6


def test_an_attack_that_the_classes_do_not_allow_is_refused_before_any(held_out: Pair) -> None:
    attack = Recorded()
    two = Constant(lambda n: torch.rand(n, 2))
    with pytest.raises(ValueError, match="APGD-T needs 4 classes, and the model has 2"):
        evaluate(two, (GREY, ONES), eps=0.1, attacks=[attack, "APGD-T"], progress=False)
    assert attack.given == []


@pytest.mark.parametrize("name", ["FGSM", "PGD-10", "CW", "AutoAttack"])
def test_a_model_without_gradients_is_refused_in_one_line(model: nn.Module, held_out: Pair, name: str) -> None:
    blind = Wrapped(model, lambda z: z.detach())
    with pytest.raises(ValueError, match=f"attacks: {name} needs gradients, and the model's logits carry none"):
        evaluate(blind, held_out, eps=0.1, attacks=name, sample=10, progress=False)


def test_an_attack_out_of_the_l2_ball_is_an_error(model: nn.Module, held_out: Pair) -> None:
    within = Recorded(lambda x: x + 0.5 * F.normalize(0.5 - x, dim=(1, 2, 3)))
    evaluate(model, held_out, norm="L2", eps=0.5, attacks=within, progress=False, alarms=False)
    with pytest.raises(RuntimeError, match=r"recorded moved an image by 0.5\d* in L2, beyond eps=0.4"):
        evaluate(model, held_out, norm="L2", eps=0.4, attacks=within, progress=False, alarms=False)


def test_images_that_the_model_does_not_take_are_refused_in_one_line(model: nn.Module) -> None:
    with pytest.raises(
        ValueError, match=r"^the model does not take images \(3, 28, 28\) \(.*\); give images"
    ) as refused:
        evaluate(model, (torch.rand(8, 3, 28, 28), torch.arange(8)), eps=0.1, attacks="FGSM", progress=False)
    assert "\n" not in str(refused.value)


def test_images_channels_last() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4))
    x = torch.rand(3, 3, 8, 8).to(memory_format=torch.channels_last)
    attack = AutoAttack(name="with few queries", queries=50)
    report = evaluate(net, (x, net(x).argmax(1)), eps=0.01, attacks=attack, progress=False)
    assert report.clean == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_model_is_lent_to_the_gpu_and_comes_home(model: nn.Module, held_out: Pair, eps: float) -> None:
    on_cpu = evaluate(model, held_out, eps=eps, attacks=["FGSM", "CW"], progress=False, alarms=False)
    on_gpu = evaluate(model, held_out, eps=eps, attacks=["FGSM", "CW"], device="cuda", progress=False, alarms=False)
    assert on_gpu.config.device == "cuda:0"
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    for name in ("FGSM", "CW"):
        assert abs(on_cpu.attacks[name].n_robust - on_gpu.attacks[name].n_robust) <= 2
