from __future__ import annotations

import dataclasses
import io
import json
import os
import re

import pytest

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
