from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from pages.parsed import Page
from rich.console import Console
from scipy.stats import binomtest

from pwoa_plugin._yaml import parse_yaml
from pwoa_plugin.pages import write_plots
from pwoa_plugin.pages.text import percent
from pwoa_plugin.runs.plots import drawings
from pwoa_plugin.runs.rendering import show, to_html, to_markdown
from pwoa_plugin.runs.report import RunReport

from .a_run import content, unfinished

NASTY = "<script>alert(1)</script> $\\frac{ | ` \" ' & ]]> {{ 1 }} \n # x"


def texts_of_numbers(made: dict[str, Any]) -> Iterator[str]:
    """Every number of a report as a page should have it, from the dict alone."""
    for layer in made["layers"]:
        yield from ("x".join(map(str, layer["shape"])), f"{layer['weights']:,}", f"{layer['kept']:,}")
        yield f"{layer['kept'] / layer['weights']:.2%}"
    size = made["size"]
    for layer in size["layers"]:
        for key in ("weights", "nonzero", "dense_bytes", "sparse_bytes"):
            yield f"{layer[key]:,}"
    for key in ("weights", "nonzero", "dense_bytes", "sparse_bytes", "bitmap_bytes", "csr_bytes"):
        yield f"{size[key]:,}"
    yield f"{size['weights'] / size['nonzero']:.1f}"
    yield f"{size['parameters'] / size['nonzero_parameters']:.4g}"
    for epoch in made["epochs"]:
        for key in ("loss", "distillation", "features", "hsic_x", "hsic_y", "lr", "rho", "residual"):
            if epoch.get(key) is not None:
                yield f"{epoch[key]:.4g}"
        yield from (f"{epoch[key]:.2%}" for key in ("sparsity", "clean", "agreement"))
        yield f"{epoch['seconds']:.1f}"
    for report in made["robustness"].values():
        bits = {name: column["robust"] for name, column in report["attacks"].items()}
        bits["clean"] = report["clean"]["correct"]
        columns = list(bits.values())
        bits["worst case"] = "".join("1" if set(flags) == {"1"} else "0" for flags in zip(*columns, strict=True))
        for verdicts in bits.values():
            low, high = binomtest(verdicts.count("1"), len(verdicts)).proportion_ci(method="wilson")
            yield f"{verdicts.count('1') / len(verdicts):.2%}"
            yield f"{low:.2%} to {high:.2%}"
        yield from (f"{column['seconds']:.1f}" for column in report["attacks"].values())
        yield f"{report['config']['n_images']} images"
        yield f"eps = {report['config']['eps']:g}"
    yield from (f"{made['residual']:.4g}", f"{made['radius']:.4g}", f"{made['model']['parameters']:,}")
    yield from (f"{made['validation']['images']} images", f"{made['validation']['dense_clean']:.2%}")
    yield from (f"epoch {made['best']['epoch']}", f"{made['best']['clean']:.2%}", f"{made['best']['agreement']:.2%}")
    yield from (made["started"], made["device"], made["model"]["sha256"], *made["versions"].values())


@pytest.mark.parametrize("render", [to_html, to_markdown])
def test_all_numbers_are_there(render: Any) -> None:
    made = content()
    text = render(RunReport.from_dict(made))
    if render is to_html:
        text = Page(text).text()
    missing = [number for number in texts_of_numbers(made) if number not in text]
    assert not missing


def test_the_config_can_be_copied_out_of_the_page_and_the_command_run() -> None:
    made = content()
    page = Page(to_html(RunReport.from_dict(made)))
    blocks = [text for tag, text in page.said if tag == "pre"]
    assert parse_yaml(blocks[-1]) == made["config"]
    assert "pwoa prune 'my config.yaml'" in blocks
    assert parse_yaml(blocks[0]) == {name: it["config"]["attacks"] for name, it in made["robustness"].items()}
    markdown = to_markdown(RunReport.from_dict(made))
    assert parse_yaml(markdown.split("```yaml\n")[1].split("\n```")[0]) == made["config"]


@pytest.mark.parametrize("made", [content, unfinished])
def test_the_page_needs_nothing_else(made: Any) -> None:
    text = to_html(RunReport.from_dict(made()))
    page = Page(text)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    references = page.attributes("href") + page.attributes("src") + page.attributes("xlink:href")
    references += re.findall(r"url\(([^)]*)\)", text)
    assert all(reference.startswith("#") and reference[1:] in ids for reference in references)
    assert not {"script", "link", "img", "iframe", "object", "base", "use:"} & {tag for tag, _ in page.tags}
    assert "@import" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


def test_plots_are_described_for_who_cannot_see_them() -> None:
    made = content()
    page = Page(to_html(RunReport.from_dict(made)))
    drawn = [attrs for tag, attrs in page.tags if tag == "svg"]
    described = [attrs["aria-label"] or "" for _, attrs in page.tags if attrs.get("role") == "img"]
    assert len(drawn) == len(described) == 5
    assert any("distillation from" in text for text in described)
    assert any("epoch 3 was kept" in text for text in described)
    assert [tag for tag, _ in page.tags].count("h1") == 1
    # Text in plots is text, and what it says is there to be found.
    svg_text = page.text("text")
    for word in ("conv", "fc2", "PGD-3", "worst case", "ADMM", "fine-tuning", "kept: epoch 3", "residual"):
        assert word in svg_text
    assert "mathdefault" not in svg_text


def test_the_same_report_gives_the_same_page() -> None:
    report = RunReport.from_dict(content())
    before = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        mine = to_html(report)
    assert mine == to_html(report)
    assert dict(mpl.rcParams) == before


def nasty() -> dict[str, Any]:
    made = content()
    made["name"] = made["device"] = made["allocation"] = made["command"][1] = NASTY
    made["layers"][0] |= {"name": NASTY, "dense_because": NASTY}
    made["size"]["layers"][0]["name"] = made["size"]["layers"][1]["tied_to"] = NASTY
    made["model"] |= {"arch": NASTY, "checkpoint": NASTY, "notes": [NASTY]}
    made["versions"][NASTY] = NASTY
    made["hidden_layers"] = [NASTY]
    made["config"]["include"] = [NASTY]
    for epoch in made["epochs"]:
        epoch[NASTY] = 0.125
    for it in made["robustness"].values():
        it["notes"] = [NASTY]
        for place in (it["attacks"], it["config"]["attacks"]):
            place[NASTY] = place.pop("FGSM")
    return made


def test_names_are_text_in_the_page(tmp_path: Path) -> None:
    report = RunReport.from_dict(nasty())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, of a figure that has no room left
        text = to_html(report)
    plain, page = Page(to_html(RunReport.from_dict(content()))), Page(text)
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    assert "<script" not in text
    assert page.text("h1") == NASTY
    assert page.text("pre").count("<script>") >= 2
    assert len(write_plots(drawings(report), tmp_path)) == 5


def test_names_are_text_in_markdown() -> None:
    text = to_markdown(RunReport.from_dict(nasty()))
    body = re.sub(r"^(`{3,})[a-z]*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "```" not in body
    unescaped = re.findall(r"(?<!\\)<script", re.sub(r"`[^`\n]*`", "", body))
    assert not unescaped
    tables = re.findall(r"(?:^\|.*\n)+", body, flags=re.MULTILINE)
    assert len(tables) == 4
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_what_there_is_no_data_for_is_left_out_and_says_why(tmp_path: Path) -> None:
    report = RunReport.from_dict(unfinished())
    page = Page(to_html(report))
    for said in (page.text(), to_markdown(report)):
        assert "Not judged yet: pwoa evaluate 'runs/a run' --eps 0.15" in said
        assert "No epoch has ended yet." in said
        assert "Not known before the hard prune." in said
        assert "interrupted" in said
    assert [path.name for path in write_plots(drawings(report), tmp_path / "new")] == ["density.png"]


def test_a_run_with_only_the_dense_network_judged() -> None:
    made = content()
    del made["robustness"]["pruned"]
    report = RunReport.from_dict(made)
    for said in (Page(to_html(report)).text(), to_markdown(report)):
        assert "Not judged yet" in said
        assert percent(report.judged["dense"].worst_case.accuracy) in said


def test_of_many_layers_the_largest_are_drawn() -> None:
    made = content()
    made["layers"] = [layer | {"name": f"{layer['name']}.{i}" * 8} for i in range(40) for layer in made["layers"]]
    page = Page(to_html(RunReport.from_dict(made)))
    assert any("of the 80 largest layers" in text for text in page.attributes("aria-label"))
    assert all(layer["name"] in page.text("th") for layer in made["layers"])


def test_whether_pruning_cost_robustness_is_said_everywhere() -> None:
    made = content()
    report = RunReport.from_dict(made)
    pair = report.judged["dense"].paired_with(report.judged["pruned"])
    assert f"{pair.first_only} images lost, {pair.second_only} won, of 50" in report.verdict
    assert report.verdict.startswith("The pruned network is ")
    assert report.verdict in to_markdown(report).replace("\\", "")
    assert report.verdict in Page(to_html(report)).text("p")
    made["robustness"]["dense"]["config"]["images_sha256"] = "others"
    other = RunReport.from_dict(made)
    assert other.verdict == ""
    assert any("not judged alike" in remark for remark in other.remarks)


def shown(made: dict[str, Any], width: int = 80, terminal: bool = False) -> str:
    file = io.StringIO()
    show(RunReport.from_dict(made), Console(file=file, width=width, force_terminal=terminal, color_system=None))
    return file.getvalue()


def line_of(text: str, *start: str) -> list[str]:
    """Cells of the line that begins so, after the title that is named first."""
    title, first = start
    return next(line.split() for line in text[text.index(title) :].splitlines() if line.split()[:1] == [first])


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("width", [20, 80, 200])
def test_numbers_are_whole_at_any_width(width: int, terminal: bool) -> None:
    made = content()
    text = shown(made, width, terminal)
    for layer in made["layers"]:
        assert line_of(text, "Layers (", layer["name"]) == [
            layer["name"],
            "x".join(map(str, layer["shape"])),
            f"{layer['weights']:,}",
            f"{layer['kept']:,}",
            f"{layer['kept'] / layer['weights']:.2%}",
        ]
    for layer in made["size"]["layers"]:
        numbers = [layer["weights"], layer["nonzero"], layer["dense_bytes"], layer["sparse_bytes"]]
        assert line_of(text, "Size", layer["name"])[1:5] == [f"{number:,}" for number in numbers]
    for name, judged in made["robustness"].items():
        bits = judged["attacks"]["PGD-3"]["robust"]
        cells = line_of(text, f"Robustness, {name}", "PGD-3")
        assert cells[1] == f"{bits.count('1') / len(bits):.2%}"
        assert cells[-1] == f"{judged['attacks']['PGD-3']['seconds']:.1f}"
    assert "…" not in text


def test_the_last_epoch_of_each_phase_is_shown() -> None:
    made = content()
    admm = [epoch for epoch in made["epochs"] if epoch["phase"] == "admm"][-1]
    last = made["epochs"][-1]
    text = shown(made)
    for term in ("loss", "distillation", "features", "hsic_x", "hsic_y"):
        assert line_of(text, "Loss,", term) == [term, f"{admm[term]:.4g}", f"{last[term]:.4g}"]
    assert f"{made['residual']:.4g}" in text
    assert "The weights are those of epoch 3" in text
    assert f"{made['validation']['dense_clean']:.2%}" in text


def test_a_table_fits_80_columns_and_long_names_are_folded() -> None:
    made = content()
    name = "backbone.layer3.22.conv2.parametrizations.the_longest_name_of_all"
    made["layers"][0]["name"] = name
    text = shown(made)
    table = text[text.index("Layers (") : text.index("Loss,")]
    assert max(map(len, table.splitlines())) <= 80
    first = [line[1:].split("  ")[0].strip() for line in table.splitlines()]
    assert name in "".join(first)


def test_lines_are_not_broken_where_they_are_read_by_programs() -> None:
    text = shown(content(), width=40)
    assert re.search(r"^warning: Only 50 images were judged: .* Judge more to narrow it\.$", text, re.MULTILINE)


def test_names_are_no_markup() -> None:
    made = content()
    made["name"] = made["layers"][0]["name"] = "[bold]x[/red]"
    made["layers"][0]["dense_because"] = "[link=x]too small"
    text = shown(made)
    assert text.count("[bold]x[/red]") >= 3
    assert "[bold]x[/red] stays dense: [link=x]too small" in text


def test_an_unfinished_run_says_what_is_missing() -> None:
    text = shown(unfinished())
    assert "The run is interrupted" in text
    assert "No epoch has ended yet." in text
    assert "Not judged yet: pwoa evaluate 'runs/a run' --eps 0.15" in text
    assert "Robustness" not in text
