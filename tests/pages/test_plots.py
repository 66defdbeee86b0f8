from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from pages.parsed import Page
from PIL import Image

from pwoa_plugin.pages import Drawing, Drawn, Palette, svg_plots, write_plots
from pwoa_plugin.pages.plots import axes, legend, percent_axis, short_percent, shortened


def lines(palette: Palette) -> Drawn:
    figure, ax = axes(palette)
    for i, colour in enumerate(palette.series):
        ax.plot([0, 1], [i / 10, 0.5], color=colour, label=f"$\\frac{{{i}")
    ax.axhline(0.2, color=palette.muted)
    percent_axis(ax.yaxis)
    legend(ax, palette)
    return figure, "Six lines."


def nothing(palette: Palette) -> Drawn:
    return None, "Nothing to draw."


DRAWINGS: dict[str, Drawing] = {"one": ("A title", lines), "two": ("Another", lines), "none": ("None", nothing)}


def test_files_are_png_of_readable_size_and_none_where_there_is_no_plot(tmp_path: Path) -> None:
    paths = write_plots(DRAWINGS, tmp_path / "new")
    assert [path.name for path in paths] == ["one.png", "two.png"]
    assert sorted((tmp_path / "new").iterdir()) == paths
    with Image.open(paths[0]) as image:
        assert (image.format, image.width > 900) == ("PNG", True)
        assert len(set(image.convert("L").tobytes())) > 20


def test_svg_takes_its_colours_from_the_page_and_shares_no_id() -> None:
    plots = svg_plots(DRAWINGS)
    assert (plots["none"].svg, plots["none"].description) == ("", "Nothing to draw.")
    pages = [Page(plots[name].svg) for name in ("one", "two")]
    ids = [set(page.attributes("id")) for page in pages]
    assert ids[0]
    assert not ids[0] & ids[1]
    for page, own in zip(pages, ids, strict=True):
        assert {reference.strip("#") for reference in page.attributes("href")} <= own
    svg = plots["one"].svg
    assert all(f"var(--plot-{i}" in svg for i in (1, 2, 3, 4, 5, 6, "muted", "font"))
    assert "currentColor" in svg
    assert not re.search(r"#0[12]0[12][0-9a-f]{2}\b|https?://(?!www\.w3\.org)", svg)
    assert "$\\frac{0" in pages[0].text("text")  # text, and no formula


def test_what_a_user_has_set_changes_nothing_and_is_left_alone() -> None:
    before: dict[str, Any] = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "text.usetex": True}):
        mine = svg_plots(DRAWINGS)
    assert mine == svg_plots(DRAWINGS)
    assert dict(mpl.rcParams) == before


def test_short_texts() -> None:
    assert shortened("layer4.1.conv2") == "layer4.1.conv2"
    long = shortened("a" * 30 + "\n" + "z" * 30)
    assert (len(long), long[0], long[-1]) == (26, "a", "z")
    assert short_percent(0.12345) == "12.3%"
