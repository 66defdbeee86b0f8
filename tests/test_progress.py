from __future__ import annotations

import dataclasses
import io
import json
import os
import re

import pytest
from rich.console import Console
from rich.progress import Progress

from pwoa_plugin import _progress
from pwoa_plugin._progress import Rows, TimeLeft, can_draw, clock
from pwoa_plugin.method.callback import Status
from pwoa_plugin.progress import JSONProgress, PlainProgress, ProgressBar, default_progress

STATUS = Status(
    phase="admm", epochs=3, steps=30, step=10, epoch=1, lr=0.1, terms={"distillation": 0.5}, loss=0.5, residual=0.25,
    images_per_second=1234.5,
)  # fmt: skip


def test_plain_lines() -> None:
    file = io.StringIO()
    progress = PlainProgress(file, every=0)
    progress.on_start(Status(phase="admm", epochs=3, steps=30))
    progress.on_report(STATUS)
    progress.on_epoch_end(STATUS)
    progress.on_end(STATUS)
    first, second = file.getvalue().splitlines()
    wanted = r"admm {}/3 step 10/30 distillation 0.5 \|W-Z\|/\|W\| 0.250 1234 images/s \d+ s left"
    assert re.fullmatch(wanted.format(2), first)
    assert re.fullmatch(wanted.format(1), second)


def test_reports_within_an_epoch_wait_for_their_time() -> None:
    file = io.StringIO()
    progress = PlainProgress(file, every=1000)
    progress.on_start(STATUS)
    progress.on_report(STATUS)
    assert file.getvalue() == ""


def test_json_lines() -> None:
    file = io.StringIO()
    progress = JSONProgress(file)
    progress.on_report(STATUS)
    progress.on_epoch_end(STATUS)
    step, epoch = map(json.loads, file.getvalue().splitlines())
    assert step == {"event": "step", **vars(STATUS), "epoch": 2, "seconds_left": 0}  # the second of three
    assert (epoch["event"], epoch["epoch"]) == ("epoch", 1)  # one is done


def test_json_lines_tell_the_time_left() -> None:
    file = io.StringIO()
    JSONProgress(file).on_report(dataclasses.replace(STATUS, seconds=5.0))
    assert json.loads(file.getvalue())["seconds_left"] == pytest.approx(10)  # 20 steps at half a second each


def test_a_reader_that_goes_away_stops_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    file = open(writer, "w")  # noqa: SIM115 - closing it fails, as it should
    progress = JSONProgress(file)
    progress.on_report(STATUS)
    progress.on_report(STATUS)
    with pytest.raises(BrokenPipeError):
        file.close()


def test_what_validation_found_is_shown_when_the_epoch_ends() -> None:
    file = io.StringIO()
    progress = PlainProgress(file, every=0)
    progress.on_start(STATUS)
    judged = dataclasses.replace(STATUS, validation={"clean": 0.5, "agreement": 0.25})
    progress.on_report(judged)
    progress.on_epoch_end(judged)
    assert ["clean 50.00% agreement 25.00%" in line for line in file.getvalue().splitlines()] == [False, True]


def test_no_terminal_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(default_progress(), PlainProgress)


def test_the_bar_shows_phase_terms_and_residual(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    progress = default_progress()
    assert isinstance(progress, ProgressBar)
    progress.on_start(Status(phase="admm", epochs=3, steps=30))
    progress.on_report(STATUS)
    progress.on_end(STATUS)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert all(text in shown for text in ("admm 2/3", "10/30", "distillation 0.5", "|W-Z|/|W| 0.250", "images/s"))


def test_a_notebook_without_widgets_gets_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress, "Console", lambda **_: Console(force_jupyter=True))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert isinstance(default_progress(Console(force_jupyter=True)), PlainProgress)
    with Rows(shown=True, every=0) as rows:
        rows.begin("PGD-20")
        rows.update(0.25, 90.0)
        rows.update(0.5, None)
        rows.end()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["PGD-20: 25%, 2 min left", "PGD-20: 50%"]
    assert re.fullmatch(r"PGD-20: done in 0\.\d s", lines[2])


def test_a_notebook_with_widgets_has_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert can_draw(Console(force_jupyter=True))
    assert not can_draw(Console(file=io.StringIO()))


def test_lines_wait_for_their_time_and_nothing_is_shown_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (True, False):
        with Rows(shown=shown, every=1000) as rows:
            rows.begin("a\x1b")
            rows.update(0.5, 1.0)
            rows.end()
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == shown
        assert all(line.startswith(r"a\x1b: done in") for line in lines)


def test_the_time_left_counts_down_between_two_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    bar = Progress(TimeLeft(), disable=True)
    row = bar.add_task("a", total=1.0, left=90.0, at=now[0])
    seen = []
    for now[0] in (100.0, 130.0, 190.0, 500.0):
        seen.append(TimeLeft().render(bar.tasks[row]).plain)
    assert seen == ["0:01:30 left", "0:01:00 left", "0:00:00 left", "0:00:00 left"]
    bar.update(row, left=None)
    assert TimeLeft().render(bar.tasks[row]).plain == "-:--:--"
    assert clock(3723.2) == "1:02:04"
