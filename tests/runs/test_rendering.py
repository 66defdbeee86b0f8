from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from pwoa_plugin.runs.rendering import show
from pwoa_plugin.runs.report import RunReport

from .a_run import content, unfinished


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
    assert re.search(r"^note: Only 50 images were judged: .* Judge more to narrow it\.$", text, re.MULTILINE)


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
    assert "Not judged yet: pwoa evaluate FOLDER --eps 0.15" in text
    assert "Robustness" not in text
