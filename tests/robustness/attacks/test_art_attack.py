"""Attacks that are not the package's own: ART's, and a user's."""

from __future__ import annotations

import copy
import inspect
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import art.attacks.evasion as evasion
import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import CarliniL2Method, DeepFool, HopSkipJump, ProjectedGradientDescent, SquareAttack
from art.attacks.poisoning import PoisoningAttackBackdoor
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from pwoa_plugin.cli.parser import parse
from pwoa_plugin.errors import InputError, MissingPackageError
from pwoa_plugin.robustness import (
    ARTAttack,
    AttackSettings,
    Report,
    compare,
    evaluate,
    load_protocol,
    make_estimator,
    security_curve,
)

HERE = Path(__file__).parent
Pair = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)


@pytest.fixture
def few(held_out: Pair) -> Pair:
    return held_out[0][:24], held_out[1][:24]


def judge(model: nn.Module, data: Pair, attacks: Any, **options: Any) -> Report:
    return evaluate(model, data, attacks=attacks, progress=False, **{"eps": 0.1, "alarms": False, **options})


def on_another_network() -> PyTorchClassifier:
    return make_estimator(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), n_classes=10, input_shape=(1, 8, 8))


FEW = {"max_iter": 2, "max_eval": 120}

FORMS: dict[str, tuple[Any, str]] = {
    "a class": (SquareAttack, "SquareAttack"),
    "a name": ("art:DeepFool", "DeepFool"),
    "a name with options": ("art:HopSkipJump(max_iter=2, max_eval=120, name='HSJ')", "HSJ"),
    "a dict": ({"attack": "art:HopSkipJump", **FEW}, "HopSkipJump"),
    "a dict of a class": ({"attack": SquareAttack, "max_iter": 9, "name": "mine"}, "mine"),
    "a partial": (partial(ProjectedGradientDescent, max_iter=5), "ProjectedGradientDescent"),
    "an ARTAttack": (ARTAttack(CarliniL2Method, max_iter=2, name="C&W"), "C&W"),
    "a module's class": ("my_attacks:Noise", "Noise"),
    "a module's class with options": ("my_attacks:Noise(times=.5, name='half')", "half"),
    "a module's Attack": ("my_attacks:Least", "Least"),
    "a module's Attack with options": ({"attack": "my_attacks:Least", "steps": 3, "name": "three"}, "three"),
    "one of the package's, with options": ("PGD(steps=3, restarts=2)", "PGD-3"),
}


@pytest.mark.parametrize(("given", "name"), FORMS.values(), ids=FORMS)
def test_every_form_is_taken_and_judged_by_the_same_rule(
    model: nn.Module, few: Pair, given: Any, name: str, tmp_path: Path
) -> None:
    report, again = judge(model, few, given), judge(model, few, [given])
    assert [*report.attacks] == [name]
    assert torch.equal(report.adversarial, again.adversarial)
    assert torch.equal(report.adversarial[report.worst_case.robust], few[0][report.worst_case.robust])
    assert (report.adversarial - few[0]).abs().max() <= 0.1 + 1e-5
    assert torch.equal(model.eval()(report.adversarial).argmax(1) == few[1], report.worst_case.robust)
    report.to_json(tmp_path / "report.json")
    assert Report.from_json(tmp_path / "report.json").config == report.config


def test_an_object_gives_its_parameters_and_stays_as_it_is(model: nn.Module, few: Pair) -> None:
    estimator = on_another_network()
    given = [HopSkipJump(estimator, **FEW), SquareAttack(estimator, max_iter=30, eps=0.05)]
    before = [dict(vars(attack)) for attack in given]
    weights = copy.deepcopy(estimator.model.state_dict())
    forwards = estimator.model.n_forwards
    report = judge(model, few, given)
    assert [dict(vars(attack)) for attack in given] == before
    assert estimator.model.n_forwards == forwards
    assert all(torch.equal(weights[name], value) for name, value in estimator.model.state_dict().items())
    hop, square = report.config.attacks.values()
    assert (hop["max_iter"], hop["max_eval"], hop["init_eval"]) == (2, 120, 100)
    assert (square["max_iter"], square["eps"]) == (30, 0.05)
    assert "SquareAttack searches its own eps=0.05, not the evaluation's 0.1" in report.notes
    assert report.attacks["SquareAttack"].n_robust < int(report.clean_correct.sum())


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        (SquareAttack, {}, {"norm": np.inf, "eps": 0.1, "batch_size": 7, "verbose": False}),
        (ProjectedGradientDescent, {}, {"eps_step": 0.0025, "max_iter": 100, "targeted": False}),
        (ProjectedGradientDescent, {"max_iter": 2}, {"eps_step": 0.1}),
        (ProjectedGradientDescent, {"eps_step": "1/255"}, {"eps_step": 1 / 255}),
        (evasion.AutoProjectedGradientDescent, {}, {"eps_step": 0.2}),
        (HopSkipJump, {}, {"norm": np.inf, "max_iter": 50}),
        (HopSkipJump, {"norm": 2}, {"norm": 2}),
        (evasion.BoundaryAttack, {}, {"targeted": False}),
        (evasion.Wasserstein, {}, {"norm": "wasserstein"}),
    ],
)
def test_what_is_not_given_is_the_evaluations(kind: Any, options: dict[str, Any], expected: dict[str, Any]) -> None:
    settings = AttackSettings(eps=0.1, n_classes=10, batch_size=7)
    built = ARTAttack(kind, **options).build(on_another_network(), settings)
    assert {name: getattr(built, name) for name in expected} == {
        name: value if isinstance(value, str) else pytest.approx(value) for name, value in expected.items()
    }


def test_an_image_beyond_the_ball_counts_as_not_broken_and_is_said(model: nn.Module, few: Pair) -> None:
    report = judge(model, few, ["my_attacks:Noise(times=3)", "my_attacks:Least", "FGSM"])
    n = int(report.clean_correct.sum())
    assert report.attacks["Noise"].n_robust == n
    assert report.notes[0] == f"Noise moved {n} of {n} images beyond eps=0.1, which count as not broken"
    assert report.notes[1].startswith("Least moved ")
    assert report.notes[0] in str(report)
    assert report.attacks["FGSM"].n_robust < n


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (0, "returned pixels that are NaN or infinite for {n} of {n} images, which count as not broken"),
        (1, None),
        (3, "out of the pixel range (0.0, 1.0), which count as not broken"),
    ],
)
def test_an_image_that_is_none_counts_as_not_broken(model: nn.Module, few: Pair, times: int, said: str | None) -> None:
    report = judge(model, few, f"my_attacks:Broken(times={times})")
    assert report.attacks["Broken"].n_robust == (n := int(report.clean_correct.sum()))
    assert [said.format(n=n) in note for note in report.notes] == [True] if said else report.notes == ()
    assert report.adversarial.max() <= 1


def test_targeted_it_aims_at_the_likeliest_wrong_class(model: nn.Module, few: Pair) -> None:
    report = judge(model, few, [partial(ProjectedGradientDescent, max_iter=20, targeted=True), "PGD-20"])
    targeted, plain = report.attacks.values()
    assert targeted.n_robust <= plain.n_robust + 2


def test_columns_of_one_class_are_numbered(model: nn.Module, few: Pair) -> None:
    report = judge(model, few, [DeepFool, partial(DeepFool, max_iter=2), "art:DeepFool(max_iter=3)"])
    assert [*report.attacks] == ["DeepFool", "DeepFool (2)", "DeepFool (3)"]


REFUSED: list[tuple[Any, str]] = [
    (5, "attacks: 5 is not an attack"),
    (nn.Linear, "Linear is no attack; give a class of Attack"),
    (PoisoningAttackBackdoor, "PoisoningAttackBackdoor is no attack"),
    ({"steps": 3}, "is not an attack"),
    ("art:Deepfool", "'art:Deepfool' is not an attack of art.attacks.evasion; did you mean DeepFool"),
    ("art:DeepFool(max_itr=3)", "DeepFool has no option 'max_itr'; did you mean max_iter"),
    ("art:DeepFool(max_iter=1", "is not a name with options; write NAME"),
    ("art:DeepFool(**{'max_iter': 1})", "is not a name with options"),
    ("art:DeepFool(max_iter=open('x'))", "is not a name with options"),
    ("art:DeepFool(max_iter=1), f(2)", "is not a name with options"),
    ("art:SquareAttack(eps='x')", "eps='x' is not a positive number"),
    ("art:SquareAttack(max_iter=-4)", "SquareAttack failed .ValueError: .*max_iter"),
    ("art:SquareAttack(name='AutoAttack')", "name='AutoAttack' is the whole standard"),
    ("art:SquareAttack(name='worst case')", "name='worst case' cannot name a column"),
    ("art:DPatch", "DPatch needs an estimator of ObjectDetectorMixin"),
    ("art:AdversarialPatch", "AdversarialPatch makes one patch"),
    ("nothere:Attack", "importing 'nothere:Attack' fails .*; give package.module:Class"),
    ("my_attacks:Nothing", "importing 'my_attacks:Nothing' fails"),
    ("my_attacks:np", "'my_attacks:np': .*is not an attack"),
    ("my_attacks:Noise(width=2)", "Noise has no option 'width'"),
    ("my_attacks:Least(width=2)", "Least cannot be made .*'width'"),
    (partial(DeepFool, 5), "has arguments without a name"),
    (["art:DeepFool", DeepFool], "'DeepFool' comes twice; give one of them another name="),
    ("FGSM(steps=2)", "unexpected keyword argument 'steps'"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line_before_any_attack(
    model: nn.Module, few: Pair, given: Any, said: str
) -> None:
    both = given if isinstance(given, list) else [partial(Untouched), given]
    with pytest.raises(ValueError, match=f"^attacks.*{said}|^{said}") as refused:
        judge(model, few, both)
    assert "\n" not in str(refused.value)


class Untouched(EvasionAttack):
    """Fails if it runs."""

    _estimator_requirements = ()

    def __init__(self, estimator: Any) -> None:
        super().__init__(estimator=estimator)

    def generate(self, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any) -> np.ndarray:
        pytest.fail("an attack ran before another one was refused")


def test_a_package_that_art_imports_late_is_named_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(MissingPackageError, match="ThresholdAttack needs cma; pip install cma"):
        ARTAttack(evasion.ThresholdAttack).require()


def test_a_failure_is_named_and_finished_attacks_are_kept(model: nn.Module, few: Pair, tmp_path: Path) -> None:
    attacks = ["PGD-10", "my_attacks:Broken(times=9)"]
    with pytest.raises(ValueError, match=r"^attacks: Broken failed \(IndexError: list index out of range\)") as failed:
        judge(model, few, attacks, state=tmp_path)
    assert isinstance(failed.value.__cause__, IndexError)
    assert list(tmp_path.glob("*/00-PGD-10/*"))
    with pytest.raises(ValueError, match=r"^attacks: Broken returned images \(1, 1, 8, 8\) for"):
        judge(model, few, "my_attacks:Broken(times=2)")


def test_another_parameter_is_another_evaluation(model: nn.Module, few: Pair, tmp_path: Path) -> None:
    reports = [judge(model, few, f"my_attacks:Noise(times={t})", state=tmp_path) for t in (0.1, 1.0, 0.1)]
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(reports[0].adversarial, reports[2].adversarial)


def test_finished_batches_beyond_the_ball_are_read_and_not_computed_again(
    model: nn.Module, few: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = judge(model, few, DeepFool, state=tmp_path, batch_size=8)
    monkeypatch.setattr(DeepFool, "generate", lambda *args, **kwargs: pytest.fail("computed again"))
    again = judge(model, few, DeepFool, state=tmp_path, batch_size=8)
    assert "beyond eps" in first.notes[0]
    assert again.notes == first.notes
    assert torch.equal(again.adversarial, first.adversarial)


def test_the_command_line_takes_options_in_parentheses() -> None:
    command = parse(["evaluate", "a", "--attacks", "PGD-20", "art:HopSkipJump(max_iter=10, name='HSJ')", "my.own:A"])
    assert vars(command)["attacks"] == ["PGD-20", "art:HopSkipJump(max_iter=10, name='HSJ')", "my.own:A"]


def test_black_boxes_use_no_gradient() -> None:
    flags = {kind.__name__: ARTAttack(kind).black_box for kind in (SquareAttack, HopSkipJump, DeepFool)}
    flags["UniversalPerturbation"] = ARTAttack(evasion.UniversalPerturbation).black_box
    assert flags == {"SquareAttack": True, "HopSkipJump": True, "DeepFool": False, "UniversalPerturbation": False}


def test_a_weak_attack_of_least_norm_raises_no_alarm(model: nn.Module, held_out: Pair) -> None:
    report = judge(model, held_out, [SquareAttack, partial(DeepFool, max_iter=1)], alarms=True)
    assert report.alarms == ()


def test_curves_and_comparisons_take_them(model: nn.Module, few: Pair) -> None:
    curve = security_curve(model, few, eps=[0.02, 0.2], attack=SquareAttack, progress=False)
    assert (curve.attack, curve.n_robust[2] < curve.n_robust[1]) == ("SquareAttack", True)
    how = {"eps": 0.1, "curve": [0.1], "curve_attack": "art:DeepFool(max_iter=2)", "alarms": False, "progress": False}
    comparison = compare({"a": model, "b": model}, few, attacks=["art:SquareAttack", "FGSM"], **how)
    assert comparison.curves["a"].attack == "DeepFool"
    with pytest.raises(ValueError, match=r"^curve_attack='art:DPatch': attacks: DPatch needs"):
        compare({"a": model}, few, attacks="FGSM", **{**how, "curve_attack": "art:DPatch"})


PROTOCOL = """
name: own
version: 1
attacks:
  - art:SquareAttack
  - {attack: art:HopSkipJump, max_iter: 2, max_eval: 120}
  - {attack: imported_late:Noise, times: 0.5, name: half}
"""


def test_a_protocol_file_names_them_and_imports_only_what_runs(
    model: nn.Module, few: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imported_late.py").write_text((HERE / "my_attacks.py").read_text())
    (tmp_path / "own.yaml").write_text(PROTOCOL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "imported_late", raising=False)
    protocol = load_protocol("own.yaml")
    assert [attack.name for attack in protocol.attacks] == ["SquareAttack", "HopSkipJump", "half"]
    assert "imported_late" not in sys.modules
    report = evaluate(model, few, protocol="own.yaml", eps=0.1, progress=False, alarms=False)
    assert [*report.attacks] == ["SquareAttack", "HopSkipJump", "half"]
    assert report.config.attacks["half"]["times"] == 0.5
    sys.modules.pop("imported_late")
    report.to_json("report.json")
    Report.from_json("report.json")
    assert "imported_late" not in sys.modules
    assert json.loads(Path("report.json").read_text())["config"]["attacks"]["half"]["class"] == "imported_late.Noise"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("art:Deepfool", "attacks.0: 'art:Deepfool' is not an attack of art.attacks.evasion; did you mean DeepFool"),
        ("{attack: art:DeepFool, stepps: 3}", "attacks.0: DeepFool has no option 'stepps'"),
        ("nothere:Attack", "importing 'nothere:Attack' fails"),
    ],
)
def test_a_protocol_file_with_an_unknown_attack_is_refused(
    model: nn.Module, few: Pair, tmp_path: Path, line: str, said: str
) -> None:
    (tmp_path / "own.yaml").write_text(f"name: own\nattacks:\n  - {line}\n")
    with pytest.raises(ValueError, match=said) as refused:
        evaluate(model, few, protocol=tmp_path / "own.yaml", eps=0.1, progress=False)
    assert "\n" not in str(refused.value)


QUICK = {"max_eval": 120, "init_size": 20, "num_trial": 3, "query_limit": 100, "binary_search_steps": 2, "nb_steps": 5}
QUICK |= {"max_halving": 1, "max_doubling": 1, "k": 5, "max_iter": 2}
QUICK |= {"conjugate_sinkhorn_max_iter": 3, "projected_sinkhorn_max_iter": 3}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", [kind for kind in vars(evasion).values() if isinstance(kind, type) and issubclass(kind, EvasionAttack)]
)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_every_class_of_art_works_or_is_refused_in_one_line(
    kind: Any, norm: str, model: nn.Module, few: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some write files where they run
    few = few[0][:4], few[1][:4]
    refused = None
    try:
        ARTAttack(kind).require()
    except (InputError, MissingPackageError) as error:
        refused = str(error)
    if refused is not None:
        assert "\n" not in refused
        assert kind.__name__ in refused
        return
    options = {name: value for name, value in QUICK.items() if name in inspect.signature(kind).parameters}
    report = judge(model, few, ARTAttack(kind, **options), norm=norm)
    (column,) = report.attacks.values()
    assert column.n_robust <= int(report.clean_correct.sum())
