"""The command line, as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pwoa_plugin
from pwoa_plugin.models import robust_lenet

pytestmark = pytest.mark.usefixtures("undrawn")

Run = Callable[..., tuple[int, str, str]]


def modules_after(*arguments: str) -> set[str]:
    code = textwrap.dedent(f"""
        import sys, json
        from pwoa_plugin.cli import main
        try: main({list(arguments)!r})
        except SystemExit as exit: assert exit.code == 0
        sys.stdout.write("\\n" + json.dumps(sorted(sys.modules)))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("command", ["", "init", "prune", "evaluate", "compare", "show", "export"])
def test_help_imports_nothing_heavy(command: str) -> None:
    heavy = {"torch", "numpy", "pydantic", "rich", "ruamel", "matplotlib", "nni", "art", "torchvision"}
    assert not heavy & modules_after(*command.split(), "--help")


def test_help_and_version(pwoa: Run) -> None:
    status, out, _ = pwoa("--help")
    assert status == 0
    assert all(command in out for command in ("init", "prune", "evaluate", "compare", "show", "export"))
    assert pwoa("--version")[1] == f"pwoa-plugin {pwoa_plugin.__version__}\n"
    assert "time between two saved states [default: 60.0]" in " ".join(pwoa("prune", "--help")[1].split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prune", "a.yaml"], "missing option '--out'"),
        (["prune", "--out", "run"], "missing argument 'config'"),
        (["prune", "CONFIG", "--out", "run", "--quiet", "--json"], "--quiet and --json do not go together"),
        (["prune", "missing.yaml", "--out", "run"], "missing.yaml"),
        (["prune", "CONFIG", "--out", "run", "--set", "epochs"], "--set epochs: give FIELD=VALUE"),
        (["prune", "CONFIG", "--out", "run", "--set", "epochs=["], "--set epochs=[: line 1"),
        (["prune", "CONFIG", "--out", "run", "--set", "epoch=1"], "epoch: unknown key; did you mean epochs?"),
        (["prune", "CONFIG", "--out", "run", "--seed", "-1"], "seed=-1"),
        (["prune", "CONFIG", "--out", "run", "--arch", "resnet81"], "resnet81"),
        (["prune", "CONFIG", "--out", "run", "--arch", "nowhere:net"], "nowhere"),
        (["prune", "CONFIG", "--out", "run", "--arch", "resnet18-cifar"], "conv1.weight"),
        (["prune", "CONFIG", "--out", "run", "--checkpoint", "missing.pt"], "'missing.pt' is missing"),
        (["prune", "CONFIG", "--out", "run", "--set", "data.root=nowhere"], "nowhere"),
        (["prune", "CONFIG", "--out", "run", "--set", "data.images=1000"], "data.images=1000"),
        (["prune", "CONFIG", "--out", "run", "--set", "exclude=fc9"], "fc9"),
        (["prune", "CONFIG", "--out", "run", "--set", "sparsity=0.999999"], "sparsity=0.999999"),
        (["prune", "CONFIG", "--out", "run", "--set", "data=null"], "data is missing"),
        (["prune", "CONFIG", "--out", "run", "--set", "model=null"], "model is missing"),
        (["prune", "CONFIG", "--out", "CONFIG"], "is a file; give a folder"),
        (["prune", "CONFIG", "--out", "run", "--save-every", "-1"], "save_every=-1: give seconds"),
        (["prune", "CONFIG", "--out", "run", "--set", "device=meta"], "device='meta'"),
        (["prune", "CONFIG", "--out", "run", "--set", "pixel_range=[0, 255]"], "does not go with data"),
        (["prune", "CONFIG", "--out", "run", "--set", "schedule.milestones=[-1]"], "schedule.milestones"),
        (["prune", "CONFIG", "--out", "run", "--device", "meta"], "device='meta' cannot be used here"),
        (["prune", "CONFIG", "--out", "run", "--device", "cuda:99"], "device='cuda:99' cannot be used here"),
        (["prune", "CONFIG", "--out", "run", "--device", "hpu"], "device='hpu' cannot be used here"),
        (["prune", "CONFIG", "--out", "run", "--set", "epochs=!!bool x"], "--set epochs=!!bool x: line 1: 'x' is no"),
        (["prune", "CONFIG", "--out", "run", "--set", "hsic.sigma=1e-300"], "hsic.sigma=1e-300: input should be"),
        (["prune", "CONFIG", "--out", "run", "--set", "optimizer.lr=1e38"], "optimizer.lr=1e+38 is too large for adam"),
        (["prune", "CONFIG", "--out", "run", "--set", "admm.rho=true"], "admm.rho=True: give a number"),
        (["prune", "CONFIG", "--out", "run", "--set", "batch_size=1" + "0" * 22], "is too large; give at most"),
        (["prune", "CONFIG", "--out", "run", "--set", "model.num_classes=1000000000"], "model.num_classes=1000000000"),
        (["prune", "CONFIG", "--out", "run", "--set", "model.arch=null"], "model.arch is missing; name the network"),
        (["prune", "CONFIG", "--out", "run", "--set", "model.arch=mynet:Tiny"], "model.arch='mynet:Tiny' names code"),
        (["prune", "/dev/zero", "--out", "run"], "/dev/zero: is no usable file (it is a pipe or a device)"),
        (["prune", "prune.yml", "--out", "run"], "prune.yml: no such file; did you mean prune.yaml?"),
        (["prune", "CONFIG", "--out", "run", "--checkpoint", "prune.yam"], "is missing; did you mean prune.yaml?"),
        (["evaluate", "prune.yml"], "prune.yml: holds no run and is not a checkpoint; did you mean prune.yaml?"),
        (["show", "prune.yml"], "holds no run (no run.json); did you mean prune.yaml?"),
        (["show", "a" * 5000], "File name too long"),
        (
            ["prune", "CONFIG", "--out", "run", "--set", "data.root=prune.yam"],
            "data.root='prune.yam' is not there; did you mean",
        ),
        (
            ["compare", "shipped:robust_lenet_mnist", "--data", "folder", "--image-size", "0", "--eps", "0.1"],
            "image_size=0: input should be",
        ),
        (["evaluate", "\x1b[31mrun"], "\\x1b[31mrun: holds no run"),
        (["compare", "a", "b\u202e", "--data", "mnist"], "a: holds no run"),
        (["init", "/dev/null", "--force"], "/dev/null: cannot be written (it is a pipe or a device)"),
        (["init", "."], "is a folder; name a file in it"),
        (["init", "CONFIG"], "exists; give --force"),
        (["init", "x.yaml", "--preset", "imagenet"], "--preset imagenet: there is no such preset; give cifar10"),
        (["evaluate", "nowhere"], "nowhere: holds no run"),
        (["show", "nowhere"], "nowhere: holds no run"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    pwoa: Run, config_file: Path, arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = pwoa(*(str(config_file) if argument == "CONFIG" else argument for argument in arguments))
    assert (status, out) == (2, "")
    assert said in err
    assert err.startswith("pwoa")
    assert ": error: " in err
    assert len(err.splitlines()) == 1
    assert err.strip().isprintable()
    assert not (tmp_path / "run").exists()


def test_init_prune_evaluate_show(pwoa: Run, mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = pwoa("init", "prune.yaml", "--preset", "mnist")
    assert status == 0
    assert "pwoa prune prune.yaml" in out
    assert "# " in Path("prune.yaml").read_text()
    few = ["--set", "epochs=4", "--set", "batch_size=16", "--set", f"data.root={mnist_root}"]
    status, out, err = pwoa("prune", "prune.yaml", "--out", "runs/a", *few)
    assert (status, out) == (0, "")
    lines = err.splitlines()
    # Plain lines: no terminal here.
    assert [line.split()[0] for line in lines if "s left" in line] == ["gradual"] * 2 + ["fine-tune"] * 2
    assert "16.0x fewer weights" in err
    assert "pwoa evaluate runs/a" in lines[-1]

    status, out, err = pwoa("show", "runs/a")
    assert status == 0
    assert all(text in out for text in ("conv1", "fc2", "distillation", "hsic_x", "pwoa evaluate"))
    assert "PGD-10" not in out

    judged = ["--attacks", "FGSM", "PGD-10", "--images", 20, "--quiet"]
    status, out, err = pwoa("evaluate", "runs/a", "--eps", "51/255", "--dense", *judged)
    assert (status, err) == (0, "")
    assert "pruned: 20 images, Linf eps = 0.2" in out
    assert "dense: 20 images" in out
    for text in (
        pwoa("show", "runs/a")[1],
        Path("runs/a/report.md").read_text(),
        Path("runs/a/report.html").read_text(),
    ):
        assert "PGD-10" in text
    report = json.loads(pwoa("show", "runs/a", "--json")[1])
    assert report == json.loads(Path("runs/a/report.json").read_text())
    assert report["robustness"]["pruned"]["config"]["eps"] == pytest.approx(0.2)
    assert report["command"] == ["pwoa", "prune", "prune.yaml", "--out", "runs/a", *few]

    pwoa("evaluate", "runs/a", *judged)  # the config's eps; the figures before stay beside
    assert len(list(Path("runs/a/robustness").glob("*.json"))) == 3
    pwoa("evaluate", "runs/a", "--attacks", "PGD-10", "--images", 20, "--quiet")
    assert len(list(Path("runs/a/robustness").glob("*.json"))) == 4  # other attacks are another judgement
    out = pwoa("evaluate", "runs/a", "--attacks", "FGSM", "--quiet")[1]
    assert "pruned: 30 images" in out  # all there are, being fewer than 1,000
    report = json.loads(pwoa("show", "runs/a", "--json")[1])
    assert {name: it["config"]["eps"] for name, it in report["robustness"].items()} == {"pruned": 0.2, "dense": 0.2}
    assert [it["report"]["config"]["eps"] for it in report["other_evaluations"]] == [0.3] * 3


def test_json_and_quiet(pwoa: Run, config_file: Path, tmp_path: Path) -> None:
    status, out, _ = pwoa("prune", config_file, "--out", tmp_path / "a", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [line["event"] for line in lines if line["event"] != "step"] == ["epoch"] * 3 + ["finished"]
    assert {"phase", "epoch", "epochs", "terms", "residual", "images_per_second", "lr"} <= lines[0].keys()
    status, out, err = pwoa("prune", config_file, "--out", tmp_path / "b", "--quiet")
    assert (status, out, err) == (0, "", "")
    status, out, _ = pwoa("evaluate", tmp_path / "a", "--attacks", "FGSM", "--images", 10, "--json")
    assert json.loads(out)["attacks"]["FGSM"]["accuracy"] <= 1
    assert status == 0


def test_a_reader_of_the_json_that_goes_away(config_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pwoa_plugin", "prune", config_file, "--out", tmp_path / "run", "--json"]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    assert process.wait() == 0
    assert (tmp_path / "run" / "pruned.safetensors").exists()


def test_seeds(pwoa: Run, config_file: Path, tmp_path: Path) -> None:
    ends = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert pwoa("prune", config_file, "--out", tmp_path / name, "--seed", seed, "--quiet")[0] == 0
        ends.append([load_file(tmp_path / name / f"{file}.safetensors") for file in ("pruned", "masks")])

    def same(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> bool:
        return all(torch.equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)

    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_ctrl_c_saves_and_says_how_to_go_on(config_file: Path, tmp_path: Path, pwoa: Run) -> None:
    out = tmp_path / "a run"
    command = ["prune", str(config_file), "--out", str(out), "--set", "epochs=30"]
    process = subprocess.Popen([sys.executable, "-m", "pwoa_plugin", *command], stderr=subprocess.PIPE, text=True)
    while not (out / "metrics.jsonl").exists() or "step" not in (out / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    err = process.communicate()[1]
    assert process.returncode == 130
    assert f"stopped, and saved; go on with: pwoa prune {config_file} --out '{out}' --set epochs=30 --resume" in err
    assert "Traceback" not in err
    assert len(list((out / "states").iterdir())) == 1
    status, shown, _ = pwoa("show", out)
    assert status == 0
    assert "interrupted" in shown
    assert pwoa(*command, "--resume", "--quiet")[0] == 0
    status, _, err = pwoa(*command, "--resume")  # done already: nothing is trained again
    assert status == 0
    assert "s left" not in err


def test_ctrl_c_in_a_terminal_reaches_the_workers_too(config_file: Path, tmp_path: Path, pwoa: Run) -> None:
    out = tmp_path / "run"
    command = ["prune", str(config_file), "--out", str(out), "--set", "epochs=60", "--set", "data.workers=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pwoa_plugin", *command], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (out / "metrics.jsonl").exists() or "step" not in (out / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate()[1]
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "stopped, and saved" in err
    assert len(list((out / "states").iterdir())) == 1


@pytest.mark.parametrize("module", ["pwoa_plugin.cli", "typer", "torch", "numpy", "pydantic", "pwoa_plugin.runs.prune"])
def test_ctrl_c_while_packages_are_imported(module: str, tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import os, runpy, signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        class Interrupt:
            def find_spec(self, name, *_):
                if name == {module!r}:
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, Interrupt())
        sys.argv = ["pwoa", "prune", "missing.yaml", "--out", "run"]
        runpy.run_module("pwoa_plugin", run_name="__main__")
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "pwoa: stopped\n")


@pytest.mark.parametrize(
    ("line", "again"),
    [
        (["prune", "CONFIG", "--out", "run"], "pwoa prune CONFIG --out run --resume"),
        (["evaluate", "RUN", "--attacks", "FGSM"], "pwoa evaluate RUN --attacks FGSM"),
        (["compare", "RUN", "--out", "run", "--attacks", "FGSM"], "pwoa compare RUN --out run --attacks FGSM"),
    ],
)
def test_ctrl_c_gives_the_command_to_go_on(
    pwoa: Run,
    config_file: Path,
    finished: Path,
    line: list[str],
    again: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    for name in ("prune.load_training", "evaluate.load_test"):
        monkeypatch.setattr(f"pwoa_plugin.runs.{name}", interrupt)
    names = {"CONFIG": str(config_file), "RUN": str(finished)}
    status, out, err = pwoa(*(names.get(argument, argument) for argument in line))
    for name, path in names.items():
        again = again.replace(name, path)
    assert (status, out, err) == (130, "", f"stopped; go on with: {again}\n")


def test_memory_that_is_not_there_is_one_line(pwoa: Run, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, **__: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr("pwoa_plugin.runs.prune.load_training", ask)
    status, _, err = pwoa("prune", config_file, "--out", "run")
    assert status == 1
    assert "the memory is full (" in err
    assert "lower batch_size (--batch-size)" in err
    assert len(err.splitlines()) == 1


def test_a_block_larger_than_every_layer_is_a_whole_layer(pwoa: Run, config_file: Path, tmp_path: Path) -> None:
    given = ["--set", "granularity=block:9999999999x1", "--quiet"]
    assert pwoa("prune", config_file, "--out", tmp_path / "run", *given)[0] == 0


def test_a_run_of_another_device_is_judged_on_this_one(
    pwoa: Run, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("device: null", "device: cuda:99"))
    judged = ["evaluate", tmp_path / "run", "--attacks", "FGSM", "--images", 5, "--quiet"]
    assert "device='cuda:99' cannot be used here" in pwoa(*judged)[2]
    assert pwoa(*judged, "--device", "cpu")[0] == 0
    assert pwoa(*judged, "--out", tmp_path / "compared")[0] == 0


@pytest.mark.parametrize(
    ("norm", "eps", "status"),
    [("L2", "1.5", 0), ("L2", "28", 0), ("L2", "28.1", 2), ("Linf", "1", 0), ("Linf", "1.1", 2)],
)
def test_radii_up_to_the_ball_that_holds_all_images(
    pwoa: Run, finished: Path, tmp_path: Path, norm: str, eps: str, status: int
) -> None:
    """One rule for a run in its folder, for others, for protocol files and curves: 28 is the root of 28 x 28."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "mine.yaml").write_text(f"{{name: mine, version: 1, norm: {norm}, eps: {eps}, attacks: [FGSM]}}")
    run, few, given = tmp_path / "run", ["--images", 5, "--quiet"], ["--attacks", "FGSM", "--norm", norm]
    lines = [
        ["evaluate", run, *given, "--eps", eps],
        ["evaluate", run, "--protocol", tmp_path / "mine.yaml"],
        ["evaluate", run, *given, "--eps", eps, "--out", tmp_path / "a"],
        ["compare", run, "--protocol", tmp_path / "mine.yaml", "--out", tmp_path / "b"],
        ["compare", run, *given, "--eps", "0.1", "--curve", "0", eps, "--out", tmp_path / "c"],
    ]
    for line in lines:
        got, _, err = pwoa(*line, *few)
        assert got == status, err
        assert (f"eps={eps} is wider than pixel_range=(0.0, 1.0)" in err) == (status == 2)


def test_control_characters_of_names_do_not_reach_the_terminal(
    pwoa: Run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "run")
    name = "\x1b[31mred[/x]"
    given = ["--attacks", "FGSM", "--images", 5, "--out", "out"]
    for result in (pwoa("compare", f"{name}={tmp_path / 'run'}", *given), pwoa("evaluate", "run", *given[:4])):
        assert result[0] == 0
        assert "\x1b" not in result[1] + result[2]
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    facts["model"]["arch"], facts["layers"][0]["name"] = name, name
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    status, out, _ = pwoa("show", "run")
    assert status == 0
    assert "\x1b" not in out
    assert out.count("\\x1b[31mred[/x]") == 2


def test_dense_is_the_network_that_was_pruned(pwoa: Run, config_file: Path, tmp_path: Path) -> None:
    save_file(robust_lenet().state_dict(), tmp_path / "robust.safetensors")
    given = ["--checkpoint", tmp_path / "robust.safetensors"]
    assert pwoa("prune", config_file, "--out", tmp_path / "run", "--quiet", *given)[0] == 0
    other = robust_lenet().state_dict()
    other["fc2.bias"][0] += 1
    save_file(other, tmp_path / "robust.safetensors")
    status, _, err = pwoa("evaluate", tmp_path / "run", "--dense", "--attacks", "FGSM", "--images", 10)
    assert status == 2
    assert "these are not the weights that" in err


def test_a_loss_that_is_no_number_is_status_1(pwoa: Run, config_file: Path, tmp_path: Path) -> None:
    status, _, err = pwoa("prune", config_file, "--out", tmp_path / "a", "--quiet", "--set", "optimizer.lr=1e25")
    assert status == 1
    assert "is not finite" in err
    assert len(err.splitlines()) == 1


OWN = """
import torch
from torch import nn

def net(num_classes=7):
    torch.manual_seed(0)
    features = nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*features, nn.Linear(676, 16), nn.ReLU(), nn.Linear(16, num_classes))
"""


def test_a_network_of_ones_own(
    pwoa: Run,
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_networks.py").write_text(OWN)
    namespace: dict[str, Callable[..., torch.nn.Module]] = {}
    exec(OWN, namespace)
    torch.save({"epoch": 3, "state_dict": torch.nn.DataParallel(namespace["net"](10)).state_dict()}, "own.pth")
    own = ["--arch", "my_networks:net"]
    status, _, err = pwoa("prune", config_file, "--out", "a", *own, "--checkpoint", "own.pth")
    assert status == 0
    assert "How robust it is: pwoa evaluate a --arch my_networks:net\n" in err
    assert "took 'module.' off the names" in caplog.text
    assert any("module." in note for note in json.loads(Path("a/run.json").read_text())["model"]["notes"])
    status, _, err = pwoa("evaluate", "a", "--attacks", "FGSM", "--images", 10)
    assert status == 2
    assert "give --arch my_networks:net" in err
    assert pwoa("evaluate", "a", "--attacks", "FGSM", "--images", 10, "--quiet", *own)[0] == 0


@pytest.mark.parametrize("arch", ["", "arch: 'my_networks:net', ", "arch: other, "])
def test_a_network_of_ones_own_needs_no_placeholder_in_the_file(
    pwoa: Run, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_networks.py").write_text(OWN)
    namespace: dict[str, Callable[..., torch.nn.Module]] = {}
    exec(OWN, namespace)
    torch.save(namespace["net"](10).state_dict(), "own.pt")
    config_file.write_text(config_file.read_text().replace("arch: lenet, ", arch))
    line = ["prune", config_file, "--out", "a", "--arch", "my_networks:net", "--checkpoint", "own.pt", "--quiet"]
    assert pwoa(*line)[0] == 0
    assert pwoa(*line, "--resume")[0] == 0
    judged = ["--attacks", "FGSM", "--images", 10, "--quiet", "--arch", "my_networks:net"]
    assert pwoa("evaluate", "a", *judged)[0] == 0
    assert pwoa("evaluate", "a", *judged, "--out", "b")[0] == 0


FACES = """
from pwoa_plugin.models import LeNet

class Faces(LeNet):
    def forward(self, x):
        logits = super().forward(x)
        return logits.repeat(1, 2), logits
"""


def test_output_and_key_choose_on_the_command_line(
    pwoa: Run, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("faces.py").write_text(FACES)
    trained = robust_lenet().state_dict()
    torch.save({"state_dict": {name: value * 0 for name, value in trained.items()}, "ema": trained}, "both.pt")
    own = ["--arch", "faces:Faces", "--key", "ema"]
    prune = ["prune", config_file, "--out", "a", "--checkpoint", "both.pt", *own]
    status, _, err = pwoa(*prune)
    assert status == 2
    assert "several tensors that may be logits (0: (2, 20), 1: (2, 10)); set output=" in err
    assert not Path("a").exists()
    assert pwoa(*prune, "--output", 1, "--quiet")[0] == 0
    assert "output: 1\n" in Path("a/config.yaml").read_text()
    judge = ["--attacks", "FGSM", "--images", 20, "--eps", 0.1, "--quiet"]
    assert pwoa("evaluate", "a", *own[:2], *judge)[0] == 0
    status, _, err = pwoa("compare", "both.pt", "a", *own, "--data", "mnist-sample", *judge, "--output", "3")
    assert status == 2
    assert "output=3: the model returns a tuple" in err
    status, out, _ = pwoa("compare", "both.pt", "a", *own, "--data", "mnist-sample", *judge)
    assert status == 0
    assert "a is not told apart from both" in out


def test_the_pruned_file_loads_into_ones_own_module(finished: Path) -> None:
    model = robust_lenet()
    model.load_state_dict(load_file(finished / "pruned.safetensors"))
    save_file(model.state_dict(), finished.parent / "again.safetensors")
    assert 0.05 < float((model.fc1.weight != 0).float().mean()) < 0.2


@pytest.mark.parametrize("error", [ValueError("nonsense"), OSError("nonsense"), ZeroDivisionError("nonsense")])
def test_a_fault_of_ours_keeps_its_traceback_and_says_where_to_report(
    pwoa: Run, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("pwoa_plugin.runs.prune.is_begun", fail)
    status, _, err = pwoa("prune", config_file, "--out", tmp_path / "run")
    assert status == 70
    assert "Traceback" in err
    assert "nonsense" in err
    assert "fault of pwoa-plugin" in err.splitlines()[-1]
    assert "report" in err.splitlines()[-1]
