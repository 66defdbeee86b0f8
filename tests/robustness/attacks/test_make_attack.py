from __future__ import annotations

import sys

import pytest

from pwoa_plugin.robustness import ATTACKS, CW, PGD, ARTAutoAttack, AttackSettings, AutoAttack, make_attack

SETTINGS = AttackSettings(eps=0.1, n_classes=10)


@pytest.mark.parametrize("name", [*ATTACKS, "PGD-1", "PGD-100"])
def test_every_name_makes_the_attack_that_reports_under_it(name: str) -> None:
    assert make_attack(name).name == name


def test_pgd_takes_its_steps_from_the_name_and_its_step_from_eps() -> None:
    parameters = make_attack("PGD-40").parameters(SETTINGS)
    assert parameters == {
        "steps": 40,
        "step_size": pytest.approx(2.5 * 0.1 / 40),
        "restarts": 1,
        "loss": "cross-entropy",
    }
    assert CW().parameters(SETTINGS)["steps"] == 20


def test_an_attacks_own_step_precedes_the_evaluations() -> None:
    settings = AttackSettings(eps=0.1, n_classes=10, step_size=0.05)
    assert PGD(steps=10).parameters(settings)["step_size"] == 0.05
    assert PGD(steps=10, step_size=0.02).parameters(settings)["step_size"] == 0.02


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("pgd-20", "did you mean PGD-20"),
        ("autoatack", "did you mean AutoAttack"),
        ("PGD-0", "did you mean PGD-"),
        ("FSGM", "did you mean FGSM"),
        ("zzz", "known are FGSM, .* and PGD-<steps>"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"^attacks: '{name}' is not a known attack; {hint}"):
        make_attack(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"steps": True}, "steps=True"),
        ({"steps": 5, "restarts": 0}, "restarts=0"),
        ({"steps": 5, "step_size": -0.1}, "step_size=-0.1"),
        ({"steps": 5, "step_size": float("nan")}, "step_size=nan"),
        ({"steps": 5, "name": ""}, "name=''"),
    ],
)
def test_bad_parameters_of_pgd_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message} .*; give"):
        PGD(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("attack", "package"), [(AutoAttack(), "pyautoattack"), (ARTAutoAttack(), "multiprocess")])
def test_a_missing_package_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, attack: AutoAttack | ARTAutoAttack, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    with pytest.raises(ModuleNotFoundError, match=f"{attack.name} needs .*pip install {package}"):
        attack.require()
