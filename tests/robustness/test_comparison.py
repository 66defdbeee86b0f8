from __future__ import annotations

import copy
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pages.parsed import Page
from torch import Tensor, nn

from pwoa_plugin import compare
from pwoa_plugin.pages import write_plots
from pwoa_plugin.robustness import Comparison, evaluate
from pwoa_plugin.robustness.statistics import holm

Pair = tuple[Tensor, Tensor]
Models = Callable[[int], nn.Module]


def prune(model: nn.Module, share: float) -> nn.Module:
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in pruned.parameters():
            if parameter.dim() > 1:
                smallest = parameter.abs().flatten().kthvalue(int(share * parameter.numel())).values
                parameter[parameter.abs() <= smallest] = 0
    return pruned


@pytest.fixture(scope="module")
def compared(make_model: Models, held_out: Pair, eps: float) -> Comparison:
    model = make_model(10)
    models = {"dense": model, "half": prune(model, 0.5), "<b>tenth": prune(model, 0.9)}
    return compare(
        models,
        held_out,
        protocol="quick",
        eps=eps,
        sample=120,
        curve=[eps / 2, eps],
        curve_attack="PGD-3",
        progress=False,
    )


def test_models_are_judged_as_evaluate_judges_them(
    compared: Comparison, make_model: Models, held_out: Pair, eps: float
) -> None:
    alone = evaluate(make_model(10), held_out, protocol="quick", eps=eps, sample=120, progress=False)
    assert compared.first == "dense"
    report = compared.reports["dense"]
    assert report.config == alone.config
    assert torch.equal(report.worst_case.robust, alone.worst_case.robust)
    assert len({report.config.images_sha256 for report in compared.reports.values()}) == 1


def test_a_loss_beyond_chance_is_told_from_none(compared: Comparison) -> None:
    assert compared.pair("<b>tenth").beyond_chance
    assert "<b>tenth is less robust than dense beyond chance: -" in compared.verdict("<b>tenth")
    same = Comparison(
        reports=dict.fromkeys(("dense", "copy"), compared.reports["dense"]),
        weights=dict.fromkeys(("dense", "copy"), compared.weights["dense"]),
    )
    assert "copy is not told apart from dense: +0.0 points" in same.verdict("copy")
    assert "Holm" not in same.verdict("copy")
    dense, tenth = compared.reports["dense"].worst_case, compared.reports["<b>tenth"].worst_case
    assert compared.pair("<b>tenth").difference == pytest.approx(tenth.accuracy - dense.accuracy)


def test_broken_images_are_lost_by_the_model_and_not_by_the_first(compared: Comparison, eps: float) -> None:
    assert compared.broken
    for item in compared.broken:
        assert compared.reports["dense"].worst_case.robust[item.index]
        report = compared.reports[item.model]
        assert not report.worst_case.robust[item.index]
        assert item.answer != item.label == int(report.labels[item.index])
        assert 0 < float((item.adversarial - item.image).abs().max()) <= eps + 1e-6


def test_json_csv_and_markdown(compared: Comparison, tmp_path: Path) -> None:
    compared.to_json(tmp_path / "comparison.json")
    back = Comparison.from_json(tmp_path / "comparison.json")
    assert back.to_dict() == compared.to_dict()
    assert back.broken == ()
    rows = list(csv.DictReader(io.StringIO(compared.to_csv())))
    assert [row["model"] for row in rows] == ["dense", "half", "<b>tenth"]
    assert [row["struct"] for row in rows] == ["", "weights", "weights"]
    assert [row["sr"] for row in rows] == ["", "", "90"]
    assert float(rows[0]["worst case %"]) == pytest.approx(
        100 * compared.reports["dense"].worst_case.accuracy, abs=0.01
    )
    assert {row["AA"] for row in rows} == {""}
    markdown = compared.to_markdown()
    assert "| model | sparsity | clean | FGSM | PGD-10 | worst case | against the first |" in markdown
    assert "<b>" not in markdown.replace("\\<b\\>", "")
    content = json.loads((tmp_path / "comparison.json").read_text())
    raw = [compared.pair(name).p_value for name in ("half", "<b>tenth")]
    paired = content["paired"]
    assert [paired[name]["worst case"]["p_value"] for name in ("half", "<b>tenth")] == raw
    assert [paired[name]["worst case"]["holm_p_value"] for name in ("half", "<b>tenth")] == holm(raw)
    assert all(re.search(r"McNemar p [^(]+ \(Holm (= |below )0[.\d]+\)\.$", compared.verdict(name)) for name in paired)
    for broken in ({"format": 3}, {"reports": {}}, {"weights": {}}, {"curves": 3}):
        with pytest.raises(ValueError, match=r"^comparison"):
            Comparison.from_dict(content | broken)


def test_in_a_notebook_a_comparison_is_a_table_and_its_repr_is_short(compared: Comparison) -> None:
    shown = compared._repr_html_()
    assert all(text in shown for text in ("<table>", "&lt;b&gt;tenth", "beyond chance", "AutoAttack is not among"))
    assert "<b>" not in shown
    curve = compared.curves["dense"]
    assert all(text in curve._repr_html_() for text in ("<table>", "PGD-3", "120 images", "0.05"))
    for short in (repr(compared), repr(compared.broken[0]), repr(curve), str(curve)):
        assert len(short) < 800
        assert "tensor" not in short


NAMES = ("=1+1", "\t@SUM(A1)", "+a", "-a", "\x1b[2J\u202ename", "[red]x[/]", "plain")


def test_a_name_steers_no_terminal_no_page_and_no_spreadsheet(compared: Comparison) -> None:
    evil = Comparison(
        reports=dict.fromkeys(NAMES, compared.reports["dense"]),
        weights=dict.fromkeys(NAMES, compared.weights["dense"]),
        curves=dict.fromkeys(NAMES, compared.curves["dense"]),
    )
    rows = list(csv.reader(io.StringIO(evil.to_csv())))
    assert [row[0] for row in rows[1:]] == [
        "'=1+1", "'\t@SUM(A1)", "'+a", "'-a", r"\x1b[2J\u202ename", "[red]x[/]", "plain",
    ]  # fmt: skip
    for text in (str(evil), evil.to_markdown(), evil.to_html(), evil.to_csv(), evil.table().to_text()):
        assert not set(text) & {"\x1b", "\u202e"}
        assert "202e" in text


def test_a_name_steers_no_progress(
    model: nn.Module, held_out: Pair, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for progress in (True, False):
        how = {"attacks": "FGSM", "eps": 0.1, "sample": 8, "alarms": False, "progress": progress}
        compare(dict.fromkeys(NAMES, model), held_out, **how)
    shown = capsys.readouterr()
    assert r"\x1b[2J\u202ename" in shown.err
    assert "[red]x[/]" in shown.err
    assert not set(shown.err + shown.out + caplog.text) & {"\x1b", "\u202e"}
    with pytest.raises(ValueError, match=r"^\\x1b") as refused:
        compare({"\x1b": nn.Identity()}, held_out, attacks="FGSM", eps=0.1, progress=False)
    assert "\x1b" not in str(refused.value)


def test_a_stored_comparison_of_format_1_is_read() -> None:
    path = Path(__file__).parent / "formats" / "comparison-1.json"
    old = json.loads(path.read_text())
    comparison = Comparison.from_json(path)
    new = comparison.to_dict()
    assert (old["format"], new["format"]) == (1, 2)
    assert {report["format"] for report in new["reports"].values()} == {3}
    for key in ("first", "weights", "curves", "benchmark"):
        assert new[key] == old[key]
    for name, columns in old["paired"].items():
        for column, pair in columns.items():
            assert new["paired"][name][column] == pytest.approx(pair)
    assert Comparison.from_dict(new).to_dict() == new


def test_autoattack_is_the_benchmarks_aa(compared: Comparison) -> None:
    content = json.loads(json.dumps(compared.to_dict()))
    for report in content["reports"].values():
        for place in (report["attacks"], report["config"]["attacks"]):
            place["AutoAttack"] = place.pop("PGD-10")
    assert Comparison.from_dict(content).benchmark_rows()[0]["AA"] is None  # a name is not enough
    for report in content["reports"].values():
        report["config"]["attacks"]["AutoAttack"] = {"version": "standard", "attacks": ["apgd-ce"], "queries": 5}
    assert Comparison.from_dict(content).benchmark_rows()[0]["AA"] is None
    for report in content["reports"].values():
        del report["config"]["attacks"]["AutoAttack"]["queries"]
    row = Comparison.from_dict(content).benchmark_rows()[0]
    report = compared.reports["dense"]
    assert row["AA"] == round(100 * report.attacks["PGD-10"].accuracy, 2)
    assert row["clean/AA"] == f"{100 * report.clean:.2f}/{row['AA']:.2f}"


def test_the_page_is_whole_and_loads_nothing(compared: Comparison) -> None:
    html = compared.to_html()
    page = Page(html)
    assert "<b>" not in html
    addresses = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href") and value]
    assert addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    assert not re.search(r"https?://(?!www\.w3\.org)", html)
    assert sum(tag == "img" for tag, _ in page.tags) == 2 * len(compared.broken)
    assert sum(tag == "svg" for tag, _ in page.tags) == 3
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")
    assert html == compared.to_html()
    for name in compared.reports:
        assert compared.reports[name].worst_case.accuracy <= 1
    assert "AutoAttack is not among the attacks" in html
    assert "adjusted for all 2 comparisons" in html


def test_plots_are_files(compared: Comparison, tmp_path: Path) -> None:
    paths = write_plots(compared.drawings(), tmp_path)
    assert [path.name for path in paths] == ["attacks.png", "classes.png", "curves.png"]


def test_a_model_alone_has_a_page_too(make_model: Models, held_out: Pair) -> None:
    arguments = {"protocol": "quick", "eps": 8 / 255, "sample": 20, "progress": False}
    alone = compare({"net": make_model(10)}, held_out, **arguments)
    assert "8/255" in alone.to_html()
    assert "Is it worse?" not in alone.to_html()
    assert alone.to_dict()["paired"] == {}
