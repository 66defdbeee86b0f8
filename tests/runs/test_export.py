"""`pwoa export`: a run's network, or a checkpoint, as a file with a card."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path

import faults
import processes
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pwoa_plugin._yaml import parse_yaml
from pwoa_plugin.cli import main
from pwoa_plugin.export import ONNXNetwork, compared
from pwoa_plugin.models import robust_lenet
from pwoa_plugin.runs.evaluate import pruned_network
from pwoa_plugin.runs.export import _examples, export

Run = Callable[..., tuple[int, str, str]]


def metadata(card: Path) -> dict[str, object]:
    _, front, body = card.read_text().split("---\n", 2)
    assert "\n# " in body
    found = parse_yaml(front)
    assert isinstance(found, dict)
    return found


def test_a_run_as_onnx(pwoa: Run, finished: Path, tmp_path: Path) -> None:
    status, out, said = pwoa("export", finished, tmp_path / "net.onnx")
    assert status == 0, said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.onnx.md"]
    assert f"net.onnx: {(tmp_path / 'net.onnx').stat().st_size:,} bytes" in out
    agreement = compared(pruned_network(finished), ONNXNetwork(tmp_path / "net.onnx"), _examples((1, 28, 28)))
    assert agreement.difference < 1e-4
    assert metadata(tmp_path / "net.onnx.md")["library_name"] == "onnx"
    card = (tmp_path / "net.onnx.md").read_text()
    for said in (
        "Training made no adversarial example",
        "| adversarial examples in training | none |",
        "PwoA, unstructured",
        "| `conv2` | 32x16x5x5 |",
        "onnxruntime.InferenceSession('net.onnx'",
        "Not judged.",
        "| torch |",
    ):
        assert said in card, said


def test_an_int8_file_is_judged_and_says_how(pwoa: Run, finished: Path, tmp_path: Path) -> None:
    how = ["--judge", "--attacks", "FGSM", "--queries", 3, "--sample", 20]
    status, out, said = pwoa("export", finished, tmp_path / "net.onnx", "--quantize", "int8", *how)
    assert status == 0, said
    names = {"net.onnx", "net.onnx.md", "net.onnx.robustness.json"}
    assert {file.name for file in tmp_path.iterdir()} == names
    judged = json.loads((tmp_path / "net.onnx.robustness.json").read_text())
    assert list(judged["file"]["attacks"]) == ["FGSM, transferred", "Square"]
    assert judged["network"]["alarms"] is not None
    card = (tmp_path / "net.onnx.md").read_text()
    assert "Not a white-box figure" in out
    assert "Not a white-box figure" in card
    assert "on 20 of 20 images" in card or "of 20 images" in card
    (entry,) = metadata(tmp_path / "net.onnx.md")["model-index"]  # type: ignore[misc]
    assert "by transfer and Square" in json.dumps(entry)


def test_a_checkpoint_as_a_program(pwoa: Run, mnist_root: Path, tmp_path: Path) -> None:
    save_file(robust_lenet().state_dict(), tmp_path / "a`b|<i>.safetensors")
    source = tmp_path / "a`b|<i>.safetensors"
    given = ["--arch", "lenet", "--data", "mnist", "--data-root", mnist_root, "--no-download", "--json"]
    judging = ["--judge", "--attacks", "FGSM", "--eps", 0.2, "--sample", 20]
    status, out, said = pwoa("export", source, tmp_path / "net.pt2", *given, *judging)
    assert status == 0, said
    last = json.loads(out.splitlines()[-1])
    assert last["file"].endswith("net.pt2")
    assert last["judgement"].endswith("net.pt2.robustness.json")
    judged = json.loads((tmp_path / "net.pt2.robustness.json").read_text())
    assert judged["attacked"]["same"] == judged["attacked"]["images"] == 20
    card = (tmp_path / "net.pt2.md").read_text()
    assert "not known: the network is a checkpoint" in card
    assert "\\<i\\>" in card  # names come from files
    assert "<i>" not in card.replace("\\<i\\>", "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["FINISHED", "OUT/a.onnx", "--format", "onx"], "format='onx' is unknown; did you mean onnx?"),
        (["FINISHED", "OUT/a.bin"], "suffix names no format"),
        (["FINISHED", "OUT/a.pt2", "--quantize", "int8"], "quantize='int8': format pt2 has none"),
        (["FINISHED", "OUT/a.onnx", "--quantize", "int4"], "format onnx has int8; did you mean int8?"),
        (["FINISHED", "OUT/a.onnx", "--values", "float16"], "values='float16': format onnx has none"),
        (["FINISHED", "OUT/a.onnx", "--quantize", "int8", "--calibration", "0"], "calibration=0"),
        (["FINISHED", "OUT/a.onnx", "--eps", "0.1"], "--eps goes with --judge"),
        (["FINISHED", "OUT/a.onnx", "--judge", "--attacks", "PGF"], "'PGF' is not a known attack"),
        (["FINISHED", "OUT/a.onnx", "--judge", "--sample", "31"], "images=31 (--sample): the test set of mnist has 30"),
        (["FINISHED", "OUT/a.onnx", "--data-root", "OUT/none", "--quantize", "int8", "--no-download"], "none"),
        (["FINISHED", "OUT/a.pt2", "--format", "semi-structured"], "no layer's weights are 2:4; prune with"),
        (["FINISHED", "/proc/a.onnx"], "/proc/a.onnx: cannot be written"),
        (["FINISHED", "/proc/a.sparse.safetensors"], "/proc/a.sparse.safetensors: cannot be written"),
        (["FINISHED", "OUT/file/a.onnx"], "cannot be written"),
        (["FINISHED", "OUT/folder.onnx"], "is a folder; name a file in it"),
        (["FINISHED", "OUT/card.onnx"], "card.onnx.md: is a folder, and would be written beside"),
        (["FINISHED", "OUT/judged.pt2"], "judged.pt2.robustness.json: is a folder"),
        (["FINISHED", "FINISHED/pruned.safetensors", "--format", "sparse"], "is what the network is read from"),
        (
            ["CHECKPOINT", "CHECKPOINT", "--format", "onnx", "--arch", "lenet", "--data", "mnist"],
            "is what the network is",
        ),
        (["UNFINISHED", "OUT/a.onnx"], "the run is not finished"),
        (["CUT", "OUT/a.onnx"], "pruned.safetensors: is no usable"),
        (["OTHER", "OUT/a.onnx"], "conv1.weight"),
        (["OUT/missing", "OUT/a.onnx"], "holds no run and is not a checkpoint"),
        (["CHECKPOINT", "OUT/a.onnx", "--data", "mnist"], "arch is missing"),
        (["CHECKPOINT", "OUT/a.onnx", "--arch", "lenet"], "data is missing"),
        (["CHECKPOINT", "OUT/a.onnx", "--arch", "resnet18-cifar", "--data", "mnist"], "conv1.weight"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    given: list[str], said: str, pwoa: Run, finished: Path, tmp_path: Path
) -> None:
    sources = {"FINISHED": finished}
    (out := tmp_path / "out").mkdir()
    folders = ["card.onnx.md", "folder.onnx", "judged.pt2.robustness.json"]
    for name in folders:
        (out / name).mkdir()
    (out / "file").touch()
    for name in ("UNFINISHED", "CUT", "OTHER"):
        if name == given[0]:
            sources[name] = Path(shutil.copytree(finished, tmp_path / name))
    if "UNFINISHED" in sources:
        facts = json.loads((sources["UNFINISHED"] / "run.json").read_text())
        (sources["UNFINISHED"] / "run.json").write_text(json.dumps(facts | {"status": "interrupted"}))
    if "CUT" in sources:
        file = sources["CUT"] / "pruned.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    if "OTHER" in sources:
        state = {name: tensor[:1].clone() for name, tensor in robust_lenet().state_dict().items()}
        save_file(state, sources["OTHER"] / "pruned.safetensors")
    if given[0] == "CHECKPOINT":
        sources["CHECKPOINT"] = tmp_path / "net.safetensors"
        save_file(robust_lenet().state_dict(), sources["CHECKPOINT"])
    line = [
        str(sources.get(word, word.replace("OUT", str(out)).replace("FINISHED/", f"{finished}/"))) for word in given
    ]
    status, _, err = pwoa("export", *line)
    assert (status, err.count("\n")) == (2, 1), err
    assert said in err
    assert sorted(entry.name for entry in out.iterdir()) == sorted([*folders, "file"])


def test_a_missing_extra_is_told_before_anything_is_written(
    finished: Path, tmp_path: Path, pwoa: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    status, _, err = pwoa("export", finished, tmp_path / "a.onnx")
    assert status == 2
    assert 'format onnx needs onnxruntime; pip install "pwoa-plugin[onnx]"' in err
    assert not list(tmp_path.iterdir())


def test_in_python(finished: Path, tmp_path: Path) -> None:
    done = export(str(finished), tmp_path / "net.pt2", progress=False)
    assert done.bytes == (tmp_path / "net.pt2").stat().st_size
    assert done.agreement is None
    assert done.shipped is None


class Odd(nn.Module):
    """Returns two parts that may be logits, of 5 classes; the first is that of the label alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(784, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.fc(x.flatten(1))
        return -logits, logits


@pytest.fixture
def odd(tmp_path: Path, mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The command line that exports such a network to ``net.onnx``."""
    monkeypatch.setitem(sys.modules, "odd_network", types.ModuleType("odd_network"))
    monkeypatch.setattr(sys.modules["odd_network"], "Odd", Odd, raising=False)
    torch.manual_seed(0)
    save_file(Odd().state_dict(), tmp_path / "odd.safetensors")
    data = ["--data", "mnist", "--data-root", mnist_root]
    return ["export", tmp_path / "odd.safetensors", tmp_path / "net.onnx", "--arch", "odd_network:Odd", *data]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--quantize", "int8"], "several tensors that may be logits"),
        (["--judge", "--attacks", "FGSM", "--eps", 0.1], "several tensors that may be logits"),
        (["--judge", "--attacks", "FGSM", "--eps", 0.1, "--output", 1], "the model has 5 classes"),
    ],
)
def test_what_cannot_be_compared_or_judged_is_not_put_in_place(
    more: list[object], said: str, odd: list[object], pwoa: Run, tmp_path: Path
) -> None:
    (tmp_path / "net.onnx").write_text("as it was")
    status, _, err = pwoa(*odd, *more)
    assert status == 2
    assert said in err.splitlines()[-1]
    assert {file.name for file in tmp_path.iterdir()} == {"odd.safetensors", "net.onnx"}
    assert (tmp_path / "net.onnx").read_text() == "as it was"


def test_the_part_with_the_logits_is_compared(odd: list[object], pwoa: Run, tmp_path: Path) -> None:
    status, out, err = pwoa(*odd, "--quantize", "int8", "--output", 1)
    assert status == 0, err
    assert "Beside the float network, on test images: the same class on" in out
    assert "Of what is returned, `1` has the logits" in (tmp_path / "net.onnx.md").read_text()


def test_a_kill_while_the_file_is_judged_leaves_the_earlier_file_and_its_card(tmp_path: Path) -> None:
    line = ["export", "shipped:robust_lenet_mnist", str(tmp_path / "net.onnx"), "--arch", "lenet", "--quiet"]
    line += ["--data", "mnist-sample"]
    judging = ["--judge", "--attacks", "FGSM", "--eps", "0.3", "--sample", "4", "--batch-size", "2"]
    assert main([*line, *judging[:-4], "--sample", "2"]) == 0
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert before.keys() == {"net.onnx", "net.onnx.md", "net.onnx.robustness.json"}
    process = processes.start(faults.killed_at_write, 2, True, main, [*line, *judging])
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "net.onnx.judging").is_dir()
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert main([*line, *judging]) == 0
    assert {file.name for file in tmp_path.iterdir()} == before.keys()
    assert main(line) == 0  # not judged: what was said of another file does not stay
    assert {file.name for file in tmp_path.iterdir()} == {"net.onnx", "net.onnx.md"}


@pytest.mark.parametrize("file", ["net.onnx", "net.pt2", "net.sparse.safetensors"])
def test_a_full_disk_is_told_of_the_file(file: str, finished: Path, tmp_path: Path) -> None:
    (tmp_path / file).write_text("as it was")
    line = ["export", str(finished), str(tmp_path / file), "--quiet"]
    process = processes.start(faults.in_little_room, main, line, stderr=tmp_path / "stderr")
    process.join()
    assert process.exitcode == 1
    said = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert f"/{file}: cannot be written (the file would be larger than is allowed); free some space" in said
    assert {entry.name for entry in tmp_path.iterdir()} == {file, "stderr"}
    assert (tmp_path / file).read_text() == "as it was"
