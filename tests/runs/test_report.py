from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages.parsed import Page
from scipy.stats import binomtest

from pwoa_plugin._yaml import parse_yaml
from pwoa_plugin.pages import write_plots
from pwoa_plugin.pages.text import percent
from pwoa_plugin.runs.plots import drawings
from pwoa_plugin.runs.rendering import to_html, to_markdown
from pwoa_plugin.runs.report import RunReport

from .a_run import content, unfinished

NASTY = "<script>alert(1)</script> $\\frac{ | ` \" ' & ]]> {{ 1 }} \n # x"


def test_round_trip() -> None:
    for made in (content(), unfinished()):
        report = RunReport.from_dict(made)
        assert report.to_dict() == made | {"verdict": report.verdict, "remarks": report.remarks}
        assert RunReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_format_1_is_still_read() -> None:
    old = json.loads((Path(__file__).parent / "report-format-1.json").read_text())
    assert old["format"] == 1
    report = RunReport.from_dict(old)
    written = report.to_dict()
    assert {key: value for key, value in written.items() if key not in ("verdict", "remarks")} == old | {"format": 2}
    assert report.epochs[0].terms.keys() == {"distillation", "features", "hsic_x", "hsic_y"}
    assert f"{old['residual']:.4g}" in to_markdown(report)


def test_robustness_comes_back_as_reports() -> None:
    made = content()
    judged = RunReport.from_dict(made).judged
    assert list(judged) == ["pruned", "dense"]
    for name, report in judged.items():
        assert report.to_dict() == made["robustness"][name]


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
        assert "Not judged yet: pwoa evaluate FOLDER --eps 0.15" in said
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, r"Only 50 images were judged: the 95 % interval of the worst case is \d+\.\d percentage points wide"),
        ({}, "AutoAttack is not among the attacks"),
        ({}, "the prefix module. was taken off"),
        ({"status": "failed"}, "The run is failed"),
        ({"validation": None, "best": None}, "No epoch was validated"),
        ({"robustness": {}}, "Not judged yet: pwoa evaluate FOLDER --eps 0.15"),
        ({"config": {"eps": 0.05}}, "Pruned for eps = 0.05, judged at eps = 0.15"),
        ({"config": {}, "robustness": {}}, "pwoa evaluate FOLDER --eps EPS"),
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


def test_every_plot_is_a_file(tmp_path: Path) -> None:
    paths = write_plots(drawings(RunReport.from_dict(content())), tmp_path)
    assert [path.stem for path in paths] == ["robustness", "density", "loss", "admm", "validation"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_one_epoch_can_be_drawn(tmp_path: Path) -> None:
    made = content() | {"best": None}
    made["epochs"] = made["epochs"][:1]
    assert len(write_plots(drawings(RunReport.from_dict(made)), tmp_path)) == 5


def test_of_many_layers_the_largest_are_drawn() -> None:
    made = content()
    made["layers"] = [layer | {"name": f"{layer['name']}.{i}" * 8} for i in range(40) for layer in made["layers"]]
    page = Page(to_html(RunReport.from_dict(made)))
    assert any("of the 80 largest layers" in text for text in page.attributes("aria-label"))
    assert all(layer["name"] in page.text("th") for layer in made["layers"])


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("format",), 3, "report.format"),
        (("status",), "done", "report.status"),
        (("started",), "yesterday", "report: started='yesterday'"),
        (("seconds",), "5", "report.seconds"),
        (("seconds",), float("nan"), "report"),
        (("sparsity",), 1.5, "report.sparsity"),
        (("layers", 1, "kept"), 10**6, "report.layers.1"),
        (("layers", 1, "kept"), 3.5, "report.layers.1.kept"),
        (("epochs", 0, "hsic_x"), "small", "report.epochs.0.hsic_x"),
        (("epochs", 1, "epoch"), 1, "report: epochs"),
        (("size", "dense_bytes"), None, "report.size.dense_bytes"),
        (("best", "epoch"), 77, "report: best.epoch=77"),
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


def test_alarms_are_among_the_remarks() -> None:
    made = content()
    made["robustness"]["pruned"]["alarms"] = [{"name": "zero-gradients", "saw": "On 9 of 9 images", "do": "Look"}]
    assert "Alarm, pruned network: On 9 of 9 images. Look." in RunReport.from_dict(made).remarks
