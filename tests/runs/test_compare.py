"""`pwoa compare`, and `pwoa evaluate` of what is no run."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import torch
from safetensors.torch import save_file

from pwoa_plugin.cli import main
from pwoa_plugin.models import robust_lenet
from pwoa_plugin.robustness import Comparison
from pwoa_plugin.runs.compare import ComparisonFolder
from pwoa_plugin.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("undrawn")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, which is the current one, with a dense checkpoint and a pruned one."""
    monkeypatch.chdir(tmp_path)
    state = robust_lenet().state_dict()
    save_file(state, tmp_path / "dense.safetensors")
    for tensor in state.values():
        if tensor.dim() > 1:
            tensor[tensor.abs() < tensor.abs().flatten().kthvalue(int(0.9 * tensor.numel())).values] = 0
    torch.save({"state_dict": state}, tmp_path / "pruned.pt")
    return tmp_path


@pytest.fixture
def common(mnist_root: Path) -> list[str]:
    return ["--arch", "lenet", "--data", "mnist", "--data-root", str(mnist_root), "--eps", "0.3"]


QUICK = ["--attacks", "PGD-3", "--quiet"]


def test_compare_writes_a_table_and_a_page(pwoa: Run, weights: Path) -> None:
    command = ["compare", "dense.safetensors", "tenth=pruned.pt", "--arch", "lenet", "--data", "mnist-sample"]
    command += ["--eps", 0.3, "--protocol", "quick", "--sample", 20]
    status, out, err = pwoa(*command, "--curve", "51/255", 0.3, "--curve-attack", "PGD-3")
    assert status == 0
    assert "dense: 20 images, Linf eps = 0.3, protocol quick 1, seed 0, cpu" in out
    assert "tenth is " in out
    assert "The page is judged/dense-tenth/comparison.html" in err
    folder = weights / "judged" / "dense-tenth"
    names = {path.name for path in folder.iterdir()}
    assert names == {"asked.json", "plots", ".lock"} | {f"comparison.{kind}" for kind in ("json", "csv", "md", "html")}
    assert {path.stem for path in (folder / "plots").iterdir()} == {"attacks", "classes", "curves"}
    comparison = Comparison.from_json(folder / "comparison.json")
    assert comparison.weights["tenth"].sparsity == pytest.approx(0.9, abs=0.01)
    assert comparison.curves["dense"].eps == (0.0, pytest.approx(0.2), 0.3)

    before = (folder / "comparison.json").stat().st_mtime_ns
    status, out, _ = pwoa(*command, "--curve", 0.2, 0.3, "--curve-attack", "PGD-3", "--json")
    assert status == 0
    assert json.loads(out)["benchmark"][1]["sr"] == 90
    assert (folder / "comparison.json").stat().st_mtime_ns == before  # it was there already
    status, _, err = pwoa(*command, "--seed", 1)
    assert status == 2
    assert "out=judged/dense-tenth: holds another comparison, with other images, seed, curve; give another --out" in err
    assert (folder / "comparison.json").stat().st_mtime_ns == before


def test_one_process_at_a_time_works_in_a_folder(pwoa: Run, weights: Path, finished: Path, common: list[str]) -> None:
    run = weights / "run"
    shutil.copytree(finished, run)
    for command, folder in (
        (["compare", "dense.safetensors", *common, "--out", "busy"], ComparisonFolder("busy")),
        (["evaluate", run], RunFolder(run)),
    ):
        with folder.locked():
            status, _, err = pwoa(*command, *QUICK, "--sample", 4)
        assert status == 1
        assert f"{folder}: another process is running here" in err


def test_evaluate_takes_a_checkpoint(pwoa: Run, weights: Path, common: list[str]) -> None:
    status, out, _ = pwoa("evaluate", "pruned.pt", *common, *QUICK, "--sample", 10, "--norm", "l2", "--out", "here")
    assert status == 0
    assert "pruned: 10 images, L2 eps = 0.3" in out
    assert (weights / "here" / "comparison.html").exists()
    status, out, _ = pwoa("evaluate", "shipped:robust_lenet_mnist", *common, "--protocol", "quick", "--json")
    assert status == 0
    assert json.loads(out)["first"] == "robust_lenet_mnist"


def test_a_run_is_compared_with_its_checkpoint(pwoa: Run, weights: Path, finished: Path, common: list[str]) -> None:
    command = ["compare", "dense=shipped:robust_lenet_mnist", f"pruned={finished}", "--arch", "lenet"]
    status, out, err = pwoa(*command, "--attacks", "PGD-3", "--sample", 15, "--json")  # data and eps are the run's
    assert status == 0, err
    content = json.loads(out)
    assert content["reports"]["pruned"]["config"]["eps"] == 0.3
    of = content["weights"]
    assert of["pruned"]["nonzero"] == pytest.approx(0.1 * of["dense"]["total"], rel=0.02)


def test_a_killed_comparison_goes_on(pwoa: Run, weights: Path) -> None:
    command = ["compare", "dense.safetensors", "pruned.pt", "--arch", "lenet", "--data", "mnist-sample", "--eps", "0.3"]
    command += ["--sample", "16", "--batch-size", "4", "--quiet", "--attacks", "PGD-20", "PGD-21"]
    assert pwoa(*command, "--out", "whole")[0] == 0
    process = processes.start(main, [*command, "--out", "killed"])
    while len(list(Path("killed").glob("state/*/*/*.safetensors"))) < 10:  # in the midst of the second model
        assert process.is_alive()
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not Path("killed/comparison.json").exists()
    status, _, err = pwoa(*command, "--out", "killed", "--seed", 1)
    assert status == 2
    assert "holds another comparison" in err
    kept = sorted(Path("killed/state").rglob("*.safetensors"))
    status, _, err = pwoa(*command, "--out", "killed", "--curve", "0.1", "--curve-attack", "PDG-3")
    assert (status, sorted(Path("killed/state").rglob("*.safetensors"))) == (2, kept)
    assert "curve_attack='PDG-3'" in err
    assert pwoa(*command, "--out", "killed", "--curve", "7")[0] == 2
    assert pwoa(*command, "--out", "killed", "--curve", "0.1", "--curve-attack", "PGD-3")[0] == 0
    assert Comparison.from_json("killed/comparison.json").curves["dense"].eps == (0.0, 0.1)
    status, _, err = pwoa(*command, "--out", "killed")
    assert status == 2
    assert "holds another comparison, with other curve;" in err
    assert not Path("killed/state").exists()
    whole, again = (Comparison.from_json(f"{name}/comparison.json") for name in ("whole", "killed"))
    for name, report in whole.reports.items():
        assert report.clean > 0.5
        for attack, column in report.attacks.items():
            assert torch.equal(column.robust, again.reports[name].attacks[attack].robust)
            assert column.forwards == again.reports[name].attacks[attack].forwards


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "dense.safetensors", "nowhere.pt", "COMMON"], "nowhere.pt: holds no run and is not a checkpoint"),
        (["compare", "dense.safetensors", "dense.safetensors", "COMMON"], "comes twice; give NAME=PATH"),
        (["compare", "dense.safetensors", "--data", "mnist-sample", "--eps", "0.3"], "arch is missing; give --arch"),
        (
            ["compare", "dense.safetensors", "--arch", "lenet", "--eps", "0.3"],
            "data is missing; give --data, one of mnist",
        ),
        (
            ["compare", "dense.safetensors", "--arch", "lenet", "--data", "mnst", "--eps", "0.3"],
            "name='mnst' is unknown",
        ),
        (["evaluate", "dense.safetensors", "DATA", "--arch", "lenett"], "did you mean lenet"),
        (["evaluate", "dense.safetensors", "DATA", "--arch", "resnet18-cifar"], "does not fit the network"),
        (["compare", "dense.safetensors", "COMMON", "--eps", "8"], "did you mean 8/255?"),
        (
            ["compare", "dense.safetensors", "--arch", "lenet", "--data", "mnist-sample"],
            "eps is missing; give the radius",
        ),
        (["compare", "dense.safetensors", "COMMON", "--eps", "eight"], "eps='eight' is not a positive number"),
        (["compare", "dense.safetensors", "COMMON", "--protocol", "fast"], "protocol='fast' is unknown"),
        (["compare", "dense.safetensors", "COMMON", "--attacks", "PDG-20"], "did you mean PGD-20"),
        (["compare", "dense.safetensors", "COMMON", "--attacks", "FGSM", "--protocol", "quick"], "give one of them"),
        (
            ["compare", "dense.safetensors", "COMMON", "--sample", "99"],
            "images=99 (--sample): the test set of mnist has 30",
        ),
        (["compare", "dense.safetensors", "COMMON", "--norm", "L9"], "norm='L9' is unknown"),
        (["compare", "dense.safetensors", "COMMON", "--curve", "0.1", "9"], "curve: eps=9 is wider"),
        (
            ["compare", "dense.safetensors", "COMMON", "--curve", "0.1", "--curve-attack", "PDG-3"],
            "curve_attack='PDG-3': attacks: ",
        ),
        (["compare", "dense.safetensors", "COMMON", "--mean", "0.5"], "std is missing"),
        (["compare", "dense.safetensors", "COMMON", "--out", "dense.safetensors"], "is a file; give a folder"),
        (["compare", "dense.safetensors", "COMMON", "--out", "."], "holds other files"),
        (
            ["evaluate", "robustbench:A", "COMMON"],
            "'robustbench:A' (data set mnist, threat model Linf): give robustbench:DATASET/",
        ),
        (["compare", "dense.safetensors", "COMMON", "--seed", "-1"], "seed=-1 "),
        (["compare", "dense.safetensors", "COMMON", "--batch-size", "0"], "batch_size=0 "),
        (["evaluate", "dense.safetensors", "COMMON", "--dense"], "--dense goes with a run"),
        (["evaluate", "shipped:robust_lenet", "COMMON"], "there is shipped:robust_lenet_mnist"),
        (["compare", "dense.safetensors", "COMMON", "--curve-attack", "PGD-3"], "goes with --curve and its radii"),
        (["evaluate", "RUN", "--curve-attack", "PGD-3"], "--curve-attack does not go with a run in its own folder"),
        (["evaluate", "RUN", "--no-download", "--data-root", "nowhere"], "data.download"),
        (["compare", "RUN", "--no-download", "--data-root", "nowhere"], "data.download"),
        (["evaluate", "RUN", "--curve", "0.1"], "--curve does not go with a run in its own folder"),
        (["evaluate", "RUN", "--protocol", "quick", "--attacks", "FGSM"], "protocol='quick' and attacks are given"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(
    pwoa: Run, weights: Path, finished: Path, common: list[str], arguments: list[str], said: str
) -> None:
    stand_for = {"COMMON": common, "DATA": common[2:], "RUN": [str(finished)]}
    given = [word for argument in arguments for word in stand_for.get(argument, [argument])]
    status, out, err = pwoa(*given)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (weights / "judged").exists() or not list((weights / "judged").iterdir())
