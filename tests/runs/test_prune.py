"""Runs in a folder: killed, stopped, resumed."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import faults
import processes
import pytest
import torch
import undrawn
from interrupted import InterruptAt, same_end
from safetensors.torch import load_file

from pwoa_plugin import PwoAConfig
from pwoa_plugin.errors import RunError, TrainingError
from pwoa_plugin.masks import load_masks
from pwoa_plugin.method.adversarial import AdversarialConfig
from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.models import robust_lenet
from pwoa_plugin.runs.begin import check_config, last_good_state
from pwoa_plugin.runs.callbacks import Stopped, read_metrics
from pwoa_plugin.runs.files import read_report
from pwoa_plugin.runs.folder import RunFolder
from pwoa_plugin.runs.prune import prune
from pwoa_plugin.runs.rendering import to_markdown

pytestmark = pytest.mark.usefixtures("undrawn")


def test_killed_at_twenty_random_moments_it_ends_with_the_same_bits(config: PwoAConfig, tmp_path: Path) -> None:
    def start(out: Path) -> BaseProcess:
        return processes.start(undrawn.call, prune, config, out, resume=True, save_every=0.0)

    def finish(out: Path) -> float:
        started = time.perf_counter()
        process = start(out)
        process.join()
        assert process.exitcode == 0
        return time.perf_counter() - started

    finish(tmp_path / "straight")
    length = finish(tmp_path / "clock")
    same_end(tmp_path / "straight", tmp_path / "clock")
    moments, kills, out = random.Random(0), 0, tmp_path / "killed"
    while kills < 20:
        process = start(out)
        process.join(moments.uniform(0.0, length))  # or until it is done
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was done before the kill: once more, elsewhere
            same_end(tmp_path / "straight", out)
            out = tmp_path / f"killed-{kills}"
            continue
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    finish(out)
    same_end(tmp_path / "straight", out)


class StopAt(Callback):
    """Asks to stop, as Ctrl-C does."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def on_step(self, status: Status) -> None:
        if status.step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("step", [1, 3, 7])
def test_stopped_and_resumed(config: PwoAConfig, finished: Path, tmp_path: Path, step: int) -> None:
    number = signal.SIGINT if step < 7 else signal.SIGTERM
    handler = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        prune(config, tmp_path / "run", callbacks=[StopAt(step, number)])
    assert stopped.value.signal == number
    assert signal.getsignal(number) is handler
    assert RunFolder(tmp_path / "run").read_facts().status == "interrupted"
    prune(config, tmp_path / "run", resume=True)
    same_end(finished, tmp_path / "run")
    assert RunFolder(tmp_path / "run").read_facts().status == "finished"


def test_the_folder_of_a_run(finished: Path, config: PwoAConfig) -> None:
    facts = json.loads((finished / "run.json").read_text())
    assert facts["seed"] == 0
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert PwoAConfig.from_yaml(finished / "config.yaml") == config
    weights, masks = load_file(finished / "pruned.safetensors"), load_masks(finished / "masks.safetensors")
    assert weights.keys() == robust_lenet().state_dict().keys()
    kept = total = 0
    for name, targets in masks.items():
        assert torch.equal(weights[f"{name}.weight"] != 0, targets["weight"].bool())
        kept, total = kept + int(targets["weight"].sum()), total + targets["weight"].numel()
    assert kept == round(total * 0.1)
    lines = read_metrics(finished / "metrics.jsonl")
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert [line["sparsity"] for line in epochs] == pytest.approx([0, 0.9, 0.9], abs=1e-4)
    needed = {"loss", "distillation", "features", "hsic_x", "hsic_y", "lr", "rho", "residual", "clean", "agreement"}
    assert all(needed <= line.keys() for line in epochs)
    assert sum(epochs[2][term] for term in ("distillation", "features", "hsic_x", "hsic_y")) == pytest.approx(
        epochs[2]["loss"]
    )
    for file in ("report.json", "report.md", "report.html", "best.safetensors", "plots/loss.png"):
        assert (finished / file).stat().st_size > 0
    assert [path.stem for path in RunFolder(finished).states()] == ["step-000000009", "step-000000003"]
    assert not list(finished.rglob("*.tmp"))


def test_a_model_and_a_loader_of_ones_own(images: Any, trained: Any, tmp_path: Path) -> None:
    settings = PwoAConfig(sparsity=0.7, train_loader=images, batch_size=64, epochs=4, eps=0.1)
    folder = prune(settings, tmp_path / "run", model=trained, validation=(images[0][:50], images[1][:50]))
    weights = load_file(folder.pruned)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trained.state_dict().items())
    facts = folder.read_facts().to_dict()
    assert facts["model"]["arch"] == "given in Python"
    assert facts["validation"]["images"] == 50
    best = max(
        (line for line in read_metrics(folder.metrics) if line["event"] == "epoch" and line["phase"] == "fine-tune"),
        key=lambda line: (line["agreement"], line["epoch"]),
    )
    assert facts["best"]["epoch"] == best["epoch"]
    with pytest.raises(ValueError, match="train_loader goes with a network"):
        prune(settings, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_few_images_make_of_the_length_is_noted_and_resumed(images: Any, trained: Any, tmp_path: Path) -> None:
    few = (images[0][:100], images[1][:100])
    settings = PwoAConfig(sparsity=0.7, train_loader=few, eps=0.1)
    for step in (1, 5):
        model, stop = copy.deepcopy(trained), StopAt(step, signal.SIGINT)
        with pytest.raises(Stopped):
            prune(settings, tmp_path / "run", model=model, resume=step > 1, callbacks=[stop])
        folder = RunFolder(tmp_path / "run")
        shares = {"hsic.share": 0.25, "distillation.feature_share": 0.25}
        assert folder.read_facts().chosen == {"epochs": 375, "distillation.temperature": 4} | shares
        state = last_good_state(folder)
        assert state is not None
        assert (state.facts["status"]["epochs"], state.facts["status"]["steps"]) == (375, 1500)
    shown = to_markdown(read_report(folder.path))
    for line in ("epochs, by default: 375", "distillation.temperature, by default: 4", "hsic.share, by default: 0.25"):
        assert line in shown


def test_other_configs_and_networks_are_not_resumed(config: PwoAConfig, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        prune(config, tmp_path / "run", callbacks=[StopAt(2)])
    with pytest.raises(ValueError, match="holds a run; resume it with --resume"):
        prune(config, tmp_path / "run")
    other = config.model_copy(deep=True)
    other.admm.rho = 0.5
    with pytest.raises(ValueError, match=r"admm\.rho differs from the run in .*; resume with the same config"):
        prune(other, tmp_path / "run", resume=True)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    del facts["config"]["hsic"]["share"]  # of a run that was begun when all terms were in every step
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"hsic\.share differs from the run"):
        prune(config, tmp_path / "run", resume=True)
    fields = config.model_dump(mode="json")
    RunFolder(tmp_path / "run").write_facts(config={name: fields[name] for name in fields if name != "compile"})
    check_config(RunFolder(tmp_path / "run"), config)  # of a run that was begun before there was this field
    with pytest.raises(ValueError, match="compile differs from the run"):
        check_config(RunFolder(tmp_path / "run"), config.model_copy(update={"compile": True}))
    attacked = config.model_copy(update={"adversarial": AdversarialConfig()})
    before = attacked.model_dump(mode="json")
    del before["adversarial"]["classes"]
    RunFolder(tmp_path / "run").write_facts(config=before)
    check_config(RunFolder(tmp_path / "run"), attacked)
    RunFolder(tmp_path / "run").write_facts(config=fields)
    from safetensors.torch import save_file

    weights = robust_lenet().state_dict()
    weights["fc2.bias"][0] += 1
    save_file(weights, tmp_path / "other.safetensors")
    other = config.model_copy(deep=True)
    other.model.checkpoint = str(tmp_path / "other.safetensors")  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="not the weights that the run"):
        prune(other, tmp_path / "run", resume=True)


def test_folders_that_are_no_runs(config: PwoAConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; give a folder"):
        prune(config, tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds other files \(thesis.tex\)"):
        prune(config, tmp_path / "mine")
    with RunFolder(tmp_path / "busy").locked(), pytest.raises(RunError, match="another process is running here"):
        prune(config, tmp_path / "busy")


def stopped_twice(config: PwoAConfig, out: Path) -> list[Path]:
    """Two states, of steps 5 and 8: it stops at the end of the step after the signal's."""
    for step in (4, 7):
        with pytest.raises(Stopped):
            prune(config, out, resume=True, callbacks=[StopAt(step)])
    return RunFolder(out).states()


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "header"])
def test_a_damaged_state_is_told_and_the_one_before_is_taken(
    config: PwoAConfig, finished: Path, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    newest, before = stopped_twice(config, tmp_path / "run")
    content = bytearray(newest.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content[-1000] ^= 1
    elif how == "empty":
        content = bytearray()
    else:
        content[200] ^= 1
    newest.write_bytes(content)
    with caplog.at_level(logging.INFO, "pwoa_plugin"):
        prune(config, tmp_path / "run", resume=True)
    assert f"{newest}: " in caplog.text
    assert "; trying the one before" in caplog.text
    assert f"resuming from {before}" in caplog.text
    same_end(finished, tmp_path / "run")


def test_no_state_that_can_be_read(config: PwoAConfig, tmp_path: Path) -> None:
    for path in stopped_twice(config, tmp_path / "run"):
        path.write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"no state can be read .*; start again with another --out"):
        prune(config, tmp_path / "run", resume=True)


def test_a_damaged_best_file_is_told_and_the_last_epoch_taken(
    config: PwoAConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Spoil(Callback):
        def on_epoch_end(self, status: Status) -> None:
            if status.epoch == 3:
                (tmp_path / "run" / "best.safetensors").write_bytes(b"nothing")

    monkeypatch.setattr("pwoa_plugin.runs.prune.best_epoch", lambda history: history[1])
    with caplog.at_level(logging.INFO, "pwoa_plugin"):
        folder = prune(config, tmp_path / "run", callbacks=[Spoil()])
    assert "the last epoch's weights are kept" in caplog.text
    assert folder.read_facts().to_dict()["best"]["epoch"] == 3


def test_nan_keeps_the_last_good_state(config: PwoAConfig, tmp_path: Path) -> None:
    config.optimizer.lr = 1e25
    with pytest.raises(
        TrainingError, match=r"not finite (at|after) step \d+.*the last good state is kept in .*step-0000"
    ):
        prune(config, tmp_path / "run", save_every=0.0)
    folder = RunFolder(tmp_path / "run")
    assert folder.read_facts().status == "failed"
    for path in folder.states():
        assert all(tensor.isfinite().all() for name, tensor in load_file(path).items() if name.startswith("model."))


def with_little_room(config: Path, out: Path, room: int) -> subprocess.CompletedProcess[str]:
    """The command line where no file may grow beyond ``room`` bytes: a real failed write, as on a full disk."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    command = [sys.executable, "-m", "pwoa_plugin", "prune", config, "--out", out, "--quiet", "--resume"]
    return subprocess.run(
        [*map(str, command), "--save-every", "0"], preexec_fn=limit, capture_output=True, text=True, check=False
    )


def test_a_disk_that_is_full_is_told_and_the_run_goes_on_later(
    config_file: Path, config: PwoAConfig, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        prune(config, tmp_path / "run", callbacks=[StopAt(3)])
    (state,) = RunFolder(tmp_path / "run").states()
    done = with_little_room(config_file, tmp_path / "run", state.stat().st_size // 2)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be written" in done.stderr
    assert f"the last good state is {state.name}: free some space and go on with --resume" in done.stderr
    assert RunFolder(tmp_path / "run").states() == [state]
    assert not list((tmp_path / "run").rglob("*.tmp"))
    prune(config, tmp_path / "run", resume=True)
    same_end(finished, tmp_path / "run")


@pytest.mark.parametrize("file", ["report.json", "report.html", "density.png", "pruned.safetensors"])
def test_a_kill_at_the_end_loses_nothing(config: PwoAConfig, finished: Path, tmp_path: Path, file: str) -> None:
    out = tmp_path / "run"
    process = processes.start(faults.killed_when_writing, file, prune, config, out, callbacks=[])
    process.join()
    assert process.exitcode == -signal.SIGKILL
    folder = RunFolder(out)
    assert folder.read_facts().status == "running"
    assert faults.scratch_files(out)
    prune(config, out, resume=True, callbacks=[])
    assert folder.read_facts().status == "finished"
    assert json.loads(folder.report.read_text())["status"] == "finished"
    assert folder.has_report()
    assert not faults.scratch_files(out)
    same_end(finished, out)


@pytest.mark.parametrize("missing", ["report.json", "report.md", "report.html"])
def test_a_finished_run_without_a_report_makes_it(
    config: PwoAConfig, finished: Path, tmp_path: Path, missing: str
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / missing).unlink()
    assert prune(config, tmp_path / "run", resume=True, callbacks=[]).has_report()


@pytest.mark.parametrize("file", ["config.yaml", "run.json", "metrics.jsonl"])
def test_a_first_write_that_fails_can_be_resumed(config: PwoAConfig, finished: Path, tmp_path: Path, file: str) -> None:
    out = tmp_path / "run"
    said = rf"{file}: cannot be written \(the disk is full\); no state is saved yet: free some space and go on"
    with faults.full_disk(file), pytest.raises(RunError, match=said):
        prune(config, out, callbacks=[])
    if file == "run.json":
        assert not (out / file).exists()
    prune(config, out, resume=True, callbacks=[])
    same_end(finished, out)


@pytest.mark.parametrize("step", [2, 5])
def test_without_a_signal_the_first_epoch_is_lost_at_most(
    config: PwoAConfig, finished: Path, tmp_path: Path, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        prune(config, out, callbacks=[InterruptAt(step)])
    assert [path.stem for path in RunFolder(out).states()] == (["step-000000003"] if step > 3 else [])
    with caplog.at_level(logging.INFO, "pwoa_plugin"):
        prune(config, out, resume=True, callbacks=[])
    assert ("no state was saved yet; starting over" in caplog.text) == (step < 3)
    same_end(finished, out)


def test_what_is_refused_before_the_first_step_leaves_no_folder(trained: Any, tmp_path: Path) -> None:
    settings = PwoAConfig(sparsity=0.7, train_loader=(torch.rand(64, 1, 12, 12), torch.zeros(64).long()), eps=0.1)
    with pytest.raises(ValueError, match="does not"):
        prune(settings, tmp_path / "a" / "b", model=trained, callbacks=[])
    assert not list(tmp_path.iterdir())
