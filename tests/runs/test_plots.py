from __future__ import annotations

from pathlib import Path

from pwoa_plugin.pages import write_plots
from pwoa_plugin.runs.plots import drawings
from pwoa_plugin.runs.report import RunReport

from .a_run import content


def test_every_plot_is_a_file(tmp_path: Path) -> None:
    paths = write_plots(drawings(RunReport.from_dict(content())), tmp_path)
    assert [path.stem for path in paths] == ["robustness", "density", "loss", "admm", "validation"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_one_epoch_can_be_drawn(tmp_path: Path) -> None:
    made = content() | {"best": None}
    made["epochs"] = made["epochs"][:1]
    assert len(write_plots(drawings(RunReport.from_dict(made)), tmp_path)) == 5
