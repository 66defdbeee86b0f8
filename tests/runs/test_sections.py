from __future__ import annotations

from typing import Any

import pytest

from pwoa_plugin.pages.sections import Folded, Part, Plots
from pwoa_plugin.pages.table import Table
from pwoa_plugin.runs.report import RunReport
from pwoa_plugin.runs.sections import sections

from .a_run import content, unfinished

COST = {
    "dense": {"parameters": 1000, "macs": 5000, "file_bytes": 4100, "latency_ms": {"1": 2.0, "128": None}},
    "pruned": {"parameters": 250, "macs": 0, "file_bytes": 1025, "latency_ms": {"1": 1.0, "128": None}},
    "speedup": {"1": 1.9, "128": None},
    "device": "cpu",
    "threads": 2,
}


def table_of(made: dict[str, Any], title: str) -> Table:
    """The table of a section, wherever it stands there."""

    def found(parts: Any) -> Table | None:
        for part in parts:
            if isinstance(part, Table):
                return part
            inner: list[Part] = []
            inner += part.beside if isinstance(part, Plots) else []
            inner += [part.part] if isinstance(part, Folded) else []
            if (table := found(inner)) is not None:
                return table
        return None

    (section,) = (it for it in sections(RunReport.from_dict(made)) if it.title == title)
    table = found(section.parts)
    assert table is not None
    return table


def test_sections_come_in_order_and_cost_only_where_channels_were_removed() -> None:
    titles = [section.title for section in sections(RunReport.from_dict(content()))]
    assert titles == ["Robustness", "Layers", "Training", "Size", "How it was made"]
    with_cost = [section.title for section in sections(RunReport.from_dict(content() | {"cost": COST}))]
    assert with_cost == [*titles[:3], "Before and after", *titles[3:]]
    assert [section.title for section in sections(RunReport.from_dict(unfinished()))] == titles


def test_before_and_after_are_compared() -> None:
    rows = table_of(content() | {"cost": COST, "file_bytes": 1030}, "Before and after").rows
    assert rows[:5] == [
        ["parameters", "1,000", "250", "4.00x"],
        ["MACs, one image", "5,000", "0", "-"],
        ["file", "4.1 kB", "1.03 kB", "3.98x"],
        ["latency, batch 1", "2 ms", "1 ms", "1.90x"],
        ["latency, batch 128", "-", "-", "-"],
    ]
    report = RunReport.from_dict(content())
    dense, pruned = (report.judged[name].worst_case.accuracy for name in ("dense", "pruned"))
    assert rows[5] == ["robust, worst case", f"{dense:.2%}", f"{pruned:.2%}", f"{pruned / dense:.1%} left"]


def test_why_layers_are_dense_is_a_column_only_where_one_is() -> None:
    assert table_of(content(), "Layers").header == ["layer", "shape", "weights", "kept", "density"]
    made = content()
    made["layers"][1]["dense_because"] = "too small"
    table = table_of(made, "Layers")
    assert table.header[-1] == "dense because"
    assert [row[-1] for row in table.rows] == ["", "too small", ""]


def test_networks_that_were_judged_unlike_are_never_side_by_side() -> None:
    made = content()
    judged = made["robustness"]["dense"]
    del judged["attacks"]["FGSM"], judged["config"]["attacks"]["FGSM"]
    assert table_of(made, "Robustness").header == ["attack", ("pruned", "95 % interval"), "seconds"]
    (section,) = (it for it in sections(RunReport.from_dict(made)) if it.title == "Robustness")
    (everything,) = (part for part in section.parts if isinstance(part, Table))
    assert [(row[1], row[6] == "-", row[4] == "-") for row in everything.rows] == [
        ("FGSM, PGD-3", True, False),
        ("PGD-3", False, True),
    ]


@pytest.mark.parametrize("made", [content, unfinished])
def test_every_row_is_as_long_as_its_header(made: Any) -> None:
    for title in ("Robustness", "Layers", "Training", "Size"):
        if made is content or title == "Layers":
            table = table_of(made(), title)
            assert {len(row) for row in table.rows} == {len(table.header)}
