from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pwoa_plugin.robustness import Alarm, AttackReport, Config, Report
from pwoa_plugin.robustness.statistics import wilson_interval


def flags(bits: str) -> torch.Tensor:
    return torch.tensor([bit == "1" for bit in bits])


@pytest.fixture
def report() -> Report:
    config = Config(
        eps=8 / 255,
        pixel_range=(0.0, 1.0),
        attacks={"FGSM": {"steps": 1}, "a|b": {"steps": 40}},
        seed=5,
        n_images=8,
        n_classes=3,
        batch_size=4,
        device="cpu",
        images_sha256="of these",
    )
    return Report(
        config=config,
        clean_correct=flags("11111110"),
        attacks={
            "FGSM": AttackReport(robust=flags("11110000"), seconds=1.25, forwards=1234, felled={"a": 3}),
            "a|b": AttackReport(robust=flags("01111100"), seconds=2.5),
        },
        alarms=(Alarm(name="zero-gradients", saw="On 3 of 8 images", do="Look"),),
        labels=torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]),
        notes=("one attack was left out",),
    )


def test_accuracies_count_all_images(report: Report) -> None:
    assert report.clean == 7 / 8
    assert report.clean_interval == wilson_interval(7, 8)
    column = report.attacks["a|b"]
    assert (column.accuracy, column.low, column.high) == (5 / 8, *wilson_interval(5, 8))


def test_worst_case_is_robust_where_every_attack_failed(report: Report) -> None:
    worst = report.worst_case
    assert worst.robust.tolist() == flags("01110000").tolist()
    assert (worst.accuracy, worst.seconds) == (3 / 8, 3.75)
    assert (worst.low, worst.high) == wilson_interval(3, 8)


def test_json_round_trip(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    report.to_json(path)
    back = Report.from_json(path)
    assert back.to_dict() == report.to_dict()
    assert back.config == report.config
    assert torch.equal(back.attacks["FGSM"].robust, report.attacks["FGSM"].robust)
    assert str(back) == str(report)
    assert back.alarms == report.alarms
    assert torch.equal(back.labels, report.labels)


FORMATS = Path(__file__).parent / "formats"


@pytest.mark.parametrize("number", [1, 2])
def test_a_stored_report_of_an_old_format_is_read(number: int) -> None:
    path = FORMATS / f"report-{number}.json"
    old = json.loads(path.read_text())
    report = Report.from_json(path)
    assert (old["format"], report.to_dict()["format"]) == (number, 3)
    assert report.clean == old["clean"]["accuracy"]
    for name, column in old["attacks"].items():
        assert report.attacks[name].accuracy == column["accuracy"]
        assert report.attacks[name].forwards == column.get("forwards", 0)
    assert report.worst_case.robust.tolist() == [bit == "1" for bit in old["worst_case"]["robust"]]
    assert report.config.attacks == old["config"]["attacks"]
    assert (report.labels is None) == (number == 1)
    assert Report.from_dict(report.to_dict()).to_dict() == report.to_dict()


def test_two_reports_are_paired_image_by_image(report: Report) -> None:
    other = Report.from_dict(report.to_dict() | {"attacks": {"FGSM": {"robust": "11100001", "seconds": 1.0}}})
    pair = report.paired_with(other, "FGSM")
    assert (pair.n, pair.both, pair.first_only, pair.second_only) == (8, 3, 1, 1)
    assert report.paired_with(other).second_only == 1  # the worst case: 01110000 and 11100000
    assert report.paired_with(other, "clean").difference == 0
    with pytest.raises(ValueError, match="column='CW': the report has FGSM"):
        report.paired_with(other, "CW")
    content = report.to_dict()
    content["config"]["images_sha256"] = "another"
    with pytest.raises(ValueError, match="not known to be of the same images"):
        report.paired_with(Report.from_dict(content))


def test_reports_of_other_attacks_are_not_paired(report: Report) -> None:
    for name, value, said in (
        ("eps", 0.5, r"eps: the reports are of 0.03.* and of 0.5; judge both alike"),
        ("norm", "L2", "norm: the reports are of Linf and of L2"),
        ("pixel_range", (0.0, 255.0), "pixel_range: the reports are of"),
        ("attacks", {"FGSM": {"steps": 2}, "a|b": {"steps": 40}}, "column='FGSM': the reports' attacks differ"),
    ):
        content = report.to_dict()
        content["config"][name] = value
        other = Report.from_dict(content)
        with pytest.raises(ValueError, match=said):
            report.paired_with(other, "FGSM")
        with pytest.raises(ValueError, match=said.replace("'FGSM'", "'worst case'")):
            report.paired_with(other)
        assert report.paired_with(other, "clean").both == 7
    assert report.paired_with(other, "a|b").both == 5  # its own settings are the same


def test_versions_name_what_a_verdict_depends_on(report: Report) -> None:
    assert report.versions["torch"] == torch.__version__
    assert {"python", "torch", "art", "pyautoattack", "numpy"} <= set(report.versions)


def test_a_failed_write_leaves_the_old_file_and_no_other(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report.to_json(path)
    before = path.read_bytes()
    (tmp_path / "reader").hardlink_to(path)  # stands for who has the old file open
    report.to_json(path)
    assert path.stat().st_ino != (tmp_path / "reader").stat().st_ino
    broken = Report(
        config=report.config,
        clean_correct=report.clean_correct,
        attacks={"FGSM": AttackReport(robust=flags("11110000"), seconds=math.inf)},
    )
    with pytest.raises(ValueError, match="Out of range float"):
        broken.to_json(path)
    assert path.read_bytes() == before
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        report.to_json(tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "reader", "report.json"]


def without(key: str) -> Any:
    return lambda content: content.pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("format"), "report has format=None, this version reads 1 to 3; give what to_json wrote"),
        (lambda c: c.update(format=4), "format=4, this version reads 1 to 3"),
        (without("config"), r"report\.config: is missing"),
        (lambda c: c["config"].update(unknown=1), r"report\.config\.unknown: 1"),
        (lambda c: c["attacks"]["FGSM"].update(robust="102"), r"report\.attacks\.FGSM\.robust: '102'"),
        (lambda c: c["attacks"]["FGSM"].update(robust="10"), r"verdicts on \[2, 8\] images"),
        (lambda c: c.update(attacks=[]), r"report\.attacks: \[\]"),
        (lambda c: c["config"].update(n_images=[]), r"report\.config\.n_images: \[\]"),
        (lambda c: c["config"].update(eps="8/255"), r"report\.config\.eps: '8/255'"),
        (lambda c: c.update(notes=[1]), r"report\.notes\.0: 1"),
    ],
)
def test_a_file_that_is_no_report_is_refused_by_name(report: Report, tmp_path: Path, change: Any, message: str) -> None:
    content = report.to_dict()
    change(content)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        Report.from_json(path)
    assert "bad.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_json_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json: is no usable JSON \(Expecting"):
        Report.from_json(tmp_path / "bad.json")


def test_markdown_has_a_row_for_each_column_and_the_notes(report: Report) -> None:
    text = report.to_markdown()
    assert text.startswith("8 images, Linf eps = 8/255, seed 5, cpu\n")
    assert "| clean | 87.50% | 52.91% to 97.76% |  |  |" in text
    assert "| FGSM | 50.00% | 21.52% to 78.48% | 1,234 | 1.2 |" in text
    assert "| a\\|b | 62.50% |" in text
    assert "| worst case | 37.50% |" in text
    assert "- one attack was left out" in text


@pytest.mark.parametrize(
    ("eps", "text"), [(0.2, "0.2"), (51 / 255, "0.2"), (0.4, "0.4"), (8 / 255, "8/255"), (0.3, "0.3")]
)
def test_eps_is_written_as_it_was_typed(report: Report, eps: float, text: str) -> None:
    assert report.config.model_copy(update={"eps": eps}).eps_text == text


def test_text_lines_up_and_has_the_notes(report: Report) -> None:
    _, header, *rows, alarm, note = str(report).splitlines()
    assert alarm == "ALARM: On 3 of 8 images. Look."
    assert [row.split("  ")[0] for row in rows] == ["clean", "FGSM", "a|b", "worst case"]
    end = header.index("accuracy") + len("accuracy")
    assert all(row[end - 1] == "%" for row in rows)
    assert note == "note: one attack was left out"


@pytest.mark.parametrize(
    ("eps", "pixel_range", "text"),
    [
        (0.3, (0.0, 1.0), "eps = 0.3,"),
        (0.031, (0.0, 1.0), "eps = 0.031,"),
        (2.0, (0.0, 1.0), "eps = 2,"),
        (8.0, (0.0, 255.0), "eps = 8 in [0.0, 255.0],"),
    ],
)
def test_eps_is_stated_in_its_units(report: Report, eps: float, pixel_range: tuple[float, float], text: str) -> None:
    content = report.to_dict()
    content["config"].update(eps=eps, pixel_range=list(pixel_range))
    assert text in str(Report.from_dict(content))


def test_in_a_notebook_a_report_is_a_table_and_its_repr_is_one_line(report: Report) -> None:
    shown = report._repr_html_()
    assert all(text in shown for text in ("<table>", "87.50%", "a|b", "worst case"))
    assert all(str(alarm.do).split("<")[0] in shown for alarm in report.alarms or ())
    for short in (repr(report), repr(report.worst_case), str(report.worst_case), str(report.config)):
        assert len(short) < 400
        assert "tensor" not in short
        assert "\n" not in short
    assert "worst case 37.50%" in repr(report)
