"""Runs as real trackers hold them: TensorBoard's event files, MLflow's store, W&B's offline files."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, TinyNet
from torch import Tensor

from pwoa_plugin import MLflow, PwoAConfig, PwoAPruner, TensorBoard, WandB
from pwoa_plugin.cli import main
from pwoa_plugin.errors import InputError
from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.runs.callbacks import Stopped, Validation
from pwoa_plugin.runs.prune import prune
from pwoa_plugin.trackers import TRACKERS, Tracker

Log = dict[str, list[tuple[int, float]]]
Read = Callable[[Path], tuple[Log, dict[str, Any], set[str]]]


def in_tensorboard(folder: Path) -> tuple[Log, dict[str, Any], set[str]]:
    """Scalars, config and names of images."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    tags = found.Tags()
    scalars = {name: [(each.step, each.value) for each in found.Scalars(name)] for name in tags["scalars"]}
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    config = {name: getattr(value, value.WhichOneof("kind")) for name, value in hparams.items()}
    return scalars, config, {name.removeprefix("plots/") for name in tags["images"]}


def in_mlflow(folder: Path) -> tuple[Log, dict[str, Any], set[str]]:
    from mlflow import MlflowClient

    client, name = MlflowClient(), (folder / "mlflow.id").read_text()
    run = client.get_run(name)
    assert run.info.status == "FINISHED"
    scalars = {key: [(m.step, m.value) for m in client.get_metric_history(name, key)] for key in run.data.metrics}
    images = {Path(file.path).stem for file in client.list_artifacts(name, "plots")}
    return scalars, run.data.params, images


def in_wandb(folder: Path) -> tuple[Log, dict[str, Any], set[str]]:
    scalars: Log = {}
    config: dict[str, Any] = {}
    images: set[str] = set()
    ids = set()
    for record in wandb_records(folder):
        ids |= {record.run.run_id} - {""}
        for item in record.run.config.update:
            config[item.key] = json.loads(item.value_json)
        values = {tuple(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name, *parts in values:
            if parts:
                images |= {name.removeprefix("plots/")}
            elif not name.startswith("_"):
                scalars.setdefault(name, []).append((values["_step",], values[name,]))
    assert ids == {(folder / "wandb.id").read_text()}
    return scalars, config, images


def wandb_records(folder: Path) -> list[Any]:
    """The records of W&B's transaction logs: LevelDB's log format after a header of 7 bytes.

    W&B's own process writes them, and may be a little late.
    """
    for _ in range(100):
        files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
        records = [records_in(file) for file in files]
        if all(each and each[-1].HasField("exit") for each in records):
            break
        time.sleep(0.1)
    return [record for each in records for record in each]


def records_in(file: Path) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    records, data, at, whole = [], file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(whole))
            whole = b""
    return records


READ: dict[str, Read] = {"tensorboard": in_tensorboard, "mlflow": in_mlflow, "wandb": in_wandb}


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


class StopsAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, status: Status) -> None:
        if status.step == self.step:
            raise Stopped(2)


@pytest.mark.parametrize("name", READ)
def test_a_resumed_run_of_the_command_line_continues_its_log(
    name: str, config_file: Path, config: PwoAConfig, tmp_path: Path
) -> None:
    pytest.importorskip(TRACKERS[name].package)
    folder = tmp_path / "run" / "logs" / name
    with pytest.raises(Stopped):
        prune(config, tmp_path / "run", save_every=0, callbacks=[TRACKERS[name](folder), StopsAt(5)])
    if name == "wandb":
        time.sleep(1)  # W&B names its files by the second; a run resumed in the same one would overwrite them
    assert main(["prune", str(config_file), "--out", "run", "--resume", "--quiet", "--log", name]) == 0
    scalars, options, images = READ[name](folder)
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    wanted = {line["step"]: line["loss"] for line in metrics if line["event"] == "step"}
    assert dict(scalars["loss"]) == pytest.approx(wanted, rel=1e-6)
    assert len(scalars["loss"]) == len(wanted)
    assert {"loss/distillation", "loss/hsic_x", "lr", "epoch", "validation/agreement"} <= scalars.keys()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    for layer in report["layers"]:
        ((step, value),) = scalars[f"sparsity/{layer['name']}"]
        assert step == 9
        assert value == pytest.approx(1 - layer["density"], abs=1e-6)
    assert str(options["sparsity"]) == "0.9"
    assert str(options["model.arch"]) == "lenet"
    assert images == {path.stem for path in (tmp_path / "run" / "plots").glob("*.png")}


@pytest.mark.parametrize(("name", "kind"), [("tensorboard", TensorBoard), ("mlflow", MLflow), ("wandb", WandB)])
def test_a_run_in_python(
    name: str, kind: type[Tracker], trained: TinyNet, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    pytest.importorskip(kind.package)
    config = PwoAConfig(sparsity=0.5, train_loader=images, batch_size=64, epochs=1, eps=0.1, progress=False)
    PwoAPruner(trained, config, callbacks=[kind(tmp_path / "log")]).compress()
    scalars, options, _ = READ[name](tmp_path / "log")
    assert [step for step, _ in scalars["loss"]] == [1, 3]
    assert scalars["sparsity"] == [(3, pytest.approx(0.5, abs=0.01))]
    assert str(options["eps"]) == "0.1"


@pytest.mark.parametrize(("name", "kind"), TRACKERS.items())
def test_another_run_in_the_same_folder_has_a_log_of_its_own(
    name: str, kind: type[Tracker], trained: TinyNet, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    pytest.importorskip(kind.package)
    kept = []
    for sparsity in (0.5, 0.75):
        config = PwoAConfig(sparsity=sparsity, train_loader=images, batch_size=64, epochs=1, eps=0.1, progress=False)
        tracker = kind(tmp_path / "log")
        PwoAPruner(copy.deepcopy(trained), config, callbacks=[tracker]).compress()
        kept.append(tracker.kept_id)
    assert name == "tensorboard" or kept[0] != kept[1]
    if name != "wandb":  # whose folder has both
        scalars, _, _ = READ[name](tmp_path / "log")
        assert [step for step, _ in scalars["loss"]] == [1, 3]
        assert scalars["sparsity"] == [(3, pytest.approx(0.75, abs=0.01))]


def test_what_is_logged_is_on_the_disk_at_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = TensorBoard(tmp_path / "log")
    tracker.open({"eps": 0.1}, 0)
    tracker.scalars({"loss": 2.0}, 1)
    assert in_tensorboard(tmp_path / "log")[0] == {"loss": [(1, 2.0)]}
    tracker.close()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_run_that_is_stopped_at_an_epochs_end_has_logged_it(
    name: str, config: PwoAConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(TRACKERS[name].package)
    validate = Validation.on_epoch_end

    def stopped(self: Validation, status: Status) -> None:
        validate(self, status)
        if status.epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "run" / "logs" / name
    monkeypatch.setattr(Validation, "on_epoch_end", stopped)
    with pytest.raises(Stopped):
        prune(config, tmp_path / "run", callbacks=[TRACKERS[name](folder)])
    monkeypatch.setattr(Validation, "on_epoch_end", validate)
    prune(config, tmp_path / "run", resume=True, callbacks=[TRACKERS[name](folder)])
    assert [step for step, _ in READ[name](folder)[0]["validation/agreement"]] == [3, 6, 9]


class Fails(Tracker):
    package, extra = "json", "fails"

    def open(self, config: Any, step: int) -> int:
        if self.folder.name == "closed":
            self.folder.mkdir(parents=True)
            raise OSError("no key")
        return step

    def scalars(self, values: Any, step: int) -> None:
        raise OSError("the server is gone")

    def image(self, name: str, path: Path, step: int) -> None:
        raise OSError("the server is gone")

    def close(self) -> None:
        pass


def test_a_tracker_that_fails_ends_no_run_and_says_so_once(
    trained: TinyNet, images: tuple[Tensor, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = PwoAConfig(sparsity=0.5, train_loader=images, batch_size=64, epochs=1, eps=0.1, progress=False)
    caplog.set_level(logging.WARNING)
    PwoAPruner(trained, config, callbacks=[Fails(tmp_path / "log")]).compress()
    assert caplog.text.count("Fails fails (OSError: the server is gone); the run goes on") == 1
    with pytest.raises(InputError, match=r"Fails cannot log to .*closed \(OSError: no key\)"):
        PwoAPruner(trained, config, callbacks=[Fails(tmp_path / "closed")]).compress()
    assert not (tmp_path / "closed").exists()


def test_a_tracker_that_cannot_be_opened_leaves_nothing_of_the_others(
    config: PwoAConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    logs = tmp_path / "run" / "logs"
    never = TensorBoard(logs / "never")
    with pytest.raises(InputError, match="Fails cannot log to"):
        prune(config, tmp_path / "run", callbacks=[TensorBoard(logs / "tensorboard"), Fails(logs / "closed"), never])
    assert "the run goes on" not in caplog.text
    assert not (tmp_path / "run").exists()


def test_bad_input_is_a_line(config_file: Path, pwoa: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status, _, err = pwoa("prune", config_file, "--out", "run", "--log", "tensorbord")
    assert (status, err.count("\n")) == (2, 1)
    assert "--log tensorbord: unknown; did you mean tensorboard?" in err
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    status, _, err = pwoa("prune", config_file, "--out", "run", "--log", "wandb")
    assert status == 2
    assert re.search(r'WandB needs wandb; pip install "pwoa-plugin\[wandb\]"', err)
    assert not (tmp_path / "run").exists()
