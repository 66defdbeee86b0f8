from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn

from pwoa_plugin.robustness import ATTACKS, PROTOCOLS, AttackSettings, evaluate, load_protocol
from pwoa_plugin.robustness.protocol import Protocol

SETTINGS = AttackSettings(eps=0.1, n_classes=10)


def names(protocol: Protocol) -> list[str]:
    return [attack.name for attack in protocol.attacks]


def test_the_protocols_of_the_package() -> None:
    assert PROTOCOLS == ("paper", "quick", "standard")
    assert names(load_protocol("paper")) == ["FGSM", "PGD-10", "PGD-20", "CW", "AutoAttack"]
    assert "AutoAttack" in names(load_protocol("standard"))
    assert "AutoAttack" not in names(load_protocol("quick"))
    for name in PROTOCOLS:
        protocol = load_protocol(name)
        assert (protocol.name, protocol.version >= 1) == (name, True)
        assert set(names(protocol)) <= set(ATTACKS)


MINE = """
name: mine
version: 3
extends: quick
norm: L2
eps: 51/255
sample: 40
output: head.1
attacks:
  - CW-5
  - {attack: PGD, steps: 7, restarts: 2, name: twice}
  - {attack: AutoAttack, name: few queries, parts: [square], queries: 20}
  - {attack: PGD-4-T, restarts: 3}
"""


def test_a_file_extends_a_protocol_and_the_report_says_so(
    tmp_path: Path, model: nn.Module, held_out: tuple[Tensor, Tensor]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    protocol = load_protocol(path)
    assert names(protocol) == ["FGSM", "PGD-10", "CW-5", "twice", "few queries", "PGD-4-T"]
    assert protocol.attacks[3].parameters(SETTINGS) | {"step_size": 0} == {
        "steps": 7,
        "step_size": 0,
        "restarts": 2,
        "loss": "cross-entropy",
    }
    assert protocol.attacks[5].parameters(SETTINGS)["restarts"] == 3
    assert protocol.attacks[4].parameters(SETTINGS) == {"version": "custom", "attacks": ["square"], "queries": 20}
    report = evaluate(model, held_out, protocol=path, progress=False, alarms=False)
    config = report.config
    assert config.output == "head.1"  # of no effect on a tensor
    assert (config.protocol, config.protocol_version, config.norm, config.n_images) == ("mine", 3, "L2", 40)
    assert config.eps == pytest.approx(0.2)
    other = evaluate(model, held_out, protocol=path, norm="Linf", eps=0.05, sample=30, progress=False, alarms=False)
    assert (other.config.norm, other.config.eps, other.config.n_images) == ("Linf", 0.05, 30)


def test_the_sample_keeps_the_shares_of_the_classes(model: nn.Module, held_out: tuple[Tensor, Tensor]) -> None:
    arguments = {"eps": 0.1, "attacks": "FGSM", "sample": 50, "progress": False, "alarms": False}
    reports = [evaluate(model, held_out, seed=seed, **arguments) for seed in (0, 0, 1)]
    assert reports[0].labels.tolist() == reports[1].labels.tolist() != reports[2].labels.tolist()
    for label in range(10):
        share = float((held_out[1] == label).double().mean()) * 50
        assert abs(int((reports[0].labels == label).sum()) - share) <= 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a", "attacks is empty"),
        ("[1]", "is not a mapping"),
        ("name: a\nattack: [FGSM]", "attack: unknown key; did you mean attacks?"),
        ("attacks: [FGSM]", "name=None: input should be a valid string"),
        ("name: paper\nattacks: [FGSM]", "name='paper' is a protocol of the package"),
        ("name: a\nversion: 0\nattacks: [FGSM]", "version=0"),
        ("name: a\nextends: papers\nattacks: [FGSM]", "extends='papers' is unknown"),
        ("name: a\nattacks: FGSM", "attacks='FGSM' is not a list"),
        ("name: a\nattacks: [PGD20]", "'PGD20' is not a known attack; did you mean PGD-20"),
        ("name: a\nattacks: [{attack: DeepFool}]", "attacks.0: 'DeepFool' is not a known attack"),
        ("name: a\nattacks: [{steps: 3}]", "attacks.0={'steps': 3} is not an attack; give a name, or {attack: NAME"),
        (
            "name: a\nattacks: [{attack: PGD-3, stepps: 3}]",
            "attacks.0: .* unexpected keyword argument 'stepps'",
        ),
        ("name: a\nattacks: [{attack: PGD, steps: -1}]", "attacks.0: steps=-1 is not a count"),
        (
            "name: a\nattacks: [{attack: AutoAttack, parts: [sqare]}]",
            r"attacks.0: parts=\['sqare'\]: AutoAttack has apgd-ce, .*; give",
        ),
        (
            "name: a\nattacks: [{attack: PGD, steps: 9, name: AutoAttack}]",
            "attacks.0: name='AutoAttack' is the whole standard",
        ),
        (
            "name: a\nattacks: [{attack: AutoAttack, parts: [square]}]",
            "attacks.0: name='AutoAttack' is the whole standard",
        ),
        ("name: a\nattacks: [{attack: AutoAttack, queries: 9}]", "attacks.0: name='AutoAttack' is the whole standard"),
        ("name: a\nattacks: [FGSM]\nnorm: L1", "norm='L1' is unknown"),
        ("name: a\nattacks: [FGSM]\neps: -1", "eps=-1 is not a positive number"),
        ("name: a\nattacks: [FGSM]\neps: 8/0", "eps='8/0' is not a positive number"),
        ("name: a\nattacks: [FGSM]\nsample: 0", "sample=0 is not a count"),
        ("name: [", "line 1"),
        ("name: !!python/object:os.system {}", "line 1"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"^protocol='.*mine\.yaml': .*{said}") as refused:
        load_protocol(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        ("standart", "protocol='standart' is unknown; did you mean standard"),
        ("zzz", "use paper, quick, standard or a .yaml file"),
        ("missing.yaml", "protocol='missing.yaml': missing.yaml: no such file"),
    ],
)
def test_an_unknown_protocol_is_refused(protocol: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_protocol(protocol)  # type: ignore[arg-type]
