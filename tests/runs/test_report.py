from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages.parsed import Page

from pwoa_plugin.runs.headline import examples_text, headline
from pwoa_plugin.runs.plots import drawings
from pwoa_plugin.runs.rendering import to_html, to_markdown
from pwoa_plugin.runs.report import RunReport

from .a_run import content, unfinished


def test_round_trip() -> None:
    for made in (content(), unfinished()):
        report = RunReport.from_dict(made)
        assert report.to_dict() == made | {name: getattr(report, name) for name in RunReport.derived}
        assert RunReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_format_1_is_still_read() -> None:
    old = json.loads((Path(__file__).parent / "report-format-1.json").read_text())
    assert old["format"] == 1
    report = RunReport.from_dict(old)
    added = {"format": 4, "other_evaluations": [], "folder": "", "chosen": {}}
    added |= {"file_bytes": None, "sparse_file_bytes": None}
    written = {key: value for key, value in report.to_dict().items() if key not in RunReport.derived}
    assert written == old | added
    assert report.epochs[0].terms.keys() == {"distillation", "features", "hsic_x", "hsic_y"}
    assert f"{old['residual']:.4g}" in to_markdown(report)


def test_robustness_comes_back_as_reports() -> None:
    made = content()
    judged = RunReport.from_dict(made).judged
    assert list(judged) == ["pruned", "dense"]
    for name, report in judged.items():
        assert report.to_dict() == made["robustness"][name]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, r"Only 50 images were judged: the 95 % interval of the worst case is \d+\.\d points wide"),
        ({}, "AutoAttack is not among the attacks"),
        ({}, "the prefix module. was taken off"),
        ({"status": "failed"}, "The run is failed"),
        ({"validation": None, "best": None}, "No epoch was validated"),
        ({"robustness": {}}, "Not judged yet: pwoa evaluate 'runs/a run' --eps 0.15"),
        ({"config": {"eps": 0.05}}, "Pruned for eps = 0.05, judged at eps = 0.15"),
        ({"config": {}, "robustness": {}}, "pwoa evaluate 'runs/a run' --eps EPS"),
    ],
)
def test_a_reader_is_warned(change: dict[str, Any], said: str) -> None:
    report = RunReport.from_dict(content() | change)
    assert sum(bool(re.search(said, remark)) for remark in report.remarks) == 1
    if "status" not in change:
        assert not any("these are not the numbers" in remark for remark in report.remarks)


def test_a_reader_is_warned_of_epochs_without_validation_and_of_dense_layers() -> None:
    made = content()
    made["epochs"][1]["agreement"] = None
    made["layers"][2]["dense_because"] = "columns are no multiple of 4"
    remarks = RunReport.from_dict(made).remarks
    assert "1 of 4 epochs have no validation, so the best may be among them." in remarks
    assert "Left dense: fc2 (columns are no multiple of 4)." in remarks


def test_networks_that_were_judged_apart_are_not_to_be_compared() -> None:
    made = content()
    assert not any("do not compare" in remark for remark in RunReport.from_dict(made).remarks)
    made["robustness"]["dense"]["config"]["seed"] = 1
    assert any("do not compare" in remark for remark in RunReport.from_dict(made).remarks)
    del made["robustness"]["dense"]
    assert any("The dense network was not judged" in remark for remark in RunReport.from_dict(made).remarks)


def test_autoattack_and_many_images_need_no_warning() -> None:
    made = content()
    for report in made["robustness"].values():
        report["config"]["n_images"] = 5000
        report["labels"] *= 100
        report["clean"]["correct"] *= 100
        for column in report["attacks"].values():
            column["robust"] *= 100
        for place in (report["attacks"], report["config"]["attacks"]):
            place["AutoAttack"] = place.pop("PGD-3")
        report["config"]["attacks"]["AutoAttack"] = {"version": "standard"}
    said = " ".join(RunReport.from_dict(made).remarks)
    assert "AutoAttack" not in said
    assert "images were judged" not in said


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("format",), 5, "report.format"),
        (("status",), "done", "report.status"),
        (("seconds",), "5", "report.seconds"),
        (("seconds",), float("nan"), "report"),
        (("sparsity",), 1.5, "report.sparsity"),
        (("layers", 1, "kept"), 3.5, "report.layers.1.kept"),
        (("epochs", 0, "hsic_x"), "small", "report.epochs.0.hsic_x"),
        (("size", "dense_bytes"), None, "report.size.dense_bytes"),
        (("robustness", "pruned", "clean", "correct"), "12", "report: robustness.pruned"),
        (("robustness", "other"), {}, "report.robustness.other"),
        (("sparsty",), 0.5, "report.sparsty"),
        (("command",), "pwoa prune", "report.command"),
    ],
)
def test_malformed_content_is_named(path: tuple[Any, ...], value: object, named: str) -> None:
    made: Any = content()
    place = made
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=f"^{re.escape(named)}") as refused:
        RunReport.from_dict(made)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["status", "model", "layers", "config", "radius", "seed"])
def test_a_missing_field_is_named(key: str) -> None:
    made = content()
    del made[key]
    with pytest.raises(ValueError, match=rf"^report\.{key}: is missing$"):
        RunReport.from_dict(made)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in inside:
        yield (*path, key)
        yield from places(entry, (*path, key))


def refusal(made: Any) -> str:
    try:
        RunReport.from_dict(made)
    except ValueError as error:
        return str(error)
    return ""


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_changed_content_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    made: Any = content()
    path = data.draw(st.sampled_from(list(places(made))))
    place = made
    for part in path[:-1]:
        place = place[part]
    if isinstance(place, dict) and data.draw(st.booleans(), label="left out"):
        del place[path[-1]]
    else:
        place[path[-1]] = data.draw(JSON)
    if said := refusal(made):
        assert said.startswith("report")
        assert len(said.splitlines()) == 1
        assert len(said) < 400
    else:
        report = RunReport.from_dict(made)
        assert RunReport.from_dict(report.to_dict()).to_dict() == report.to_dict()
        to_markdown(report)


@pytest.mark.parametrize(
    "value", [None, [], "text", 3, {}, {"format": "1"}, {"format": True}, {"format": 1}, {"format": 2}]
)
def test_what_is_no_report_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^report\.") as refused:
        RunReport.from_dict(value)
    assert "\n" not in str(refused.value)


def test_alarms_are_among_the_remarks() -> None:
    made = content()
    made["robustness"]["pruned"]["alarms"] = [{"name": "zero-gradients", "saw": "On 9 of 9 images", "do": "Look"}]
    assert "Alarm, pruned network: On 9 of 9 images. Look." in RunReport.from_dict(made).remarks


@pytest.mark.parametrize(
    ("change", "converged"),
    [
        ({"residual": 0.1}, True),
        ({"residual": 0.5}, False),
        ({"residual": 0.1, "granularity": "structured", "config": {"admm": {"rho_max": 1e9}}}, False),
        ({"residual": 0.1, "granularity": "structured", "config": {"admm": {"rho_max": 1e-9}}}, True),
        ({"residual": None}, None),
    ],
)
def test_whether_admm_has_converged_is_said(change: dict[str, Any], converged: bool | None) -> None:
    report = RunReport.from_dict(content() | change)
    assert report.admm_converged is report.to_dict()["admm_converged"] is converged
    assert any("ADMM had not converged" in said for said in report.warnings) == (converged is False)
    text = to_markdown(report)
    assert ("it had converged" in text, "it had not converged" in text) == (converged is True, converged is False)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (None, "Training made no adversarial example."),
        ({"attack": "pgd"}, "Training made adversarial examples: pgd, Linf eps = 0.3, in all epochs."),
        ({"attack": "n-fgsm", "eps": 0.1, "epochs": 1}, "n-fgsm, Linf eps = 0.1, in the last epoch."),
        (
            {"attack": "n-fgsm", "epochs": 2, "classes": "teacher"},
            "n-fgsm, Linf eps = 0.3, in the last 2 epochs, with the teacher's classes.",
        ),
    ],
)
def test_adversarial_examples_in_training_are_said(section: dict[str, Any] | None, said: str) -> None:
    made = content()
    made["config"] = {"eps": 0.3, "adversarial": section}
    assert examples_text(RunReport.from_dict(made)).endswith(said)
    assert said in to_markdown(RunReport.from_dict(made))


def test_a_chart_without_admm_does_not_name_it() -> None:
    made = content()
    assert drawings(RunReport.from_dict(made))["admm"][0] == "ADMM residual and sparsity"
    for epoch in made["epochs"]:
        epoch["residual"] = None
    assert drawings(RunReport.from_dict(made))["admm"][0] == "Sparsity"


@pytest.mark.parametrize(
    ("there", "said", "tile"),
    [
        (None, "a sparse file would have about ", "in a sparse file</p>"),
        (51_234, "its sparse file has 51,234 bytes.", "with its zeros; 51.2 kB in its sparse file</p>"),
    ],
)
def test_the_bytes_of_the_file_and_of_the_sparse_one_are_told_apart(there: int | None, said: str, tile: str) -> None:
    report = RunReport.from_dict(content() | {"file_bytes": 829_992, "sparse_file_bytes": there})
    for text in (headline(report)[0], to_markdown(report)):
        assert f"Its file holds the zeros and has 829,992 bytes; {said}" in text
    assert "become" not in headline(report)[0]
    assert tile in to_html(report)


def test_information_is_no_warning() -> None:
    made = content()
    made["layers"][2]["dense_because"] = "columns are no multiple of 4"
    report = RunReport.from_dict(made)
    assert report.remarks == report.warnings + report.information
    assert report.information == ["Left dense: fc2 (columns are no multiple of 4).", made["model"]["notes"][0]]
    page = Page(to_html(report))
    sections = [attrs.get("class") for tag, attrs in page.tags if tag == "section"]
    assert sections.index("remarks") + 1 == sections.index("information")
