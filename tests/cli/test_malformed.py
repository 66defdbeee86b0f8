"""Hundreds of malformed configs, YAML texts, checkpoints, arguments, drawn from a seed: each is told in one line.

No traceback, no hang, status 2, nothing left behind; what can be meant after all comes to training, which is replaced.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from conftest import TinyNet, make_images
from safetensors.torch import save

from pwoa_plugin import PwoAConfig
from pwoa_plugin._section import Section
from pwoa_plugin.cli.commands import Init, Prune, Show
from pwoa_plugin.cli.judging import Compare, Evaluate
from pwoa_plugin.errors import PwoAError, RunError
from pwoa_plugin.method.settings import TrainingConfig
from pwoa_plugin.method.trainer import Trainer
from pwoa_plugin.models import robust_lenet

Run = Callable[..., tuple[int, str, str]]
CAME_TO_WORK = "came to work"


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Training and judging are replaced: what comes so far is not malformed."""

    def work(*_: object, **__: object) -> None:
        raise RunError(CAME_TO_WORK)

    monkeypatch.chdir(tmp_path)
    for name in ("prune._train", "evaluate.judge_task", "compare.compare_task"):
        monkeypatch.setattr(f"pwoa_plugin.runs.{name}", work)


@pytest.fixture
def told(pwoa: Run, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Runs a command line and checks how it ends: ``refused``, ``meant`` or ``printed``."""

    def hang(*_: object) -> None:
        raise AssertionError("takes longer than 20 s")

    def run(*arguments: object) -> str:
        signal.alarm(20)
        status, out, err = pwoa(*arguments)
        signal.alarm(0)
        shown = f"{[str(argument)[:80] for argument in arguments]}: {status}\n{err[-1500:]}"
        assert "Traceback" not in err, shown
        assert "\x1b" not in err + out, shown
        end = {0: "printed", 2: "refused"}.get(status, "meant")
        if end == "refused":
            assert (out, len(err.splitlines())) == ("", 1), shown
            assert ": error: " in err, shown
            assert len(err) < 3000, shown
        elif end == "meant":
            assert status == 1, shown
            assert CAME_TO_WORK in err, shown
        if (tmp_path / "out").exists():
            assert end == "meant", shown
            shutil.rmtree(tmp_path / "out")
        return end

    before = signal.signal(signal.SIGALRM, hang)
    yield run
    signal.signal(signal.SIGALRM, before)


def report(what: str, ends: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{len(ends)} {what}: {dict(Counter(ends))}")  # noqa: T201


# -- configs ----

NUMBERS: list[Any] = [
    -1, 0, 1, 2, 10**9, 10**12, 10**30, -(10**30), 0.5, 1e-300, 5e-324, 1e300, -1e300, True, False,
    float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
OTHERS: list[Any] = [
    None, "", " ", "x", "8/255", "1/0", "\x1b[31m", "a" * 5000, "2:4", "block:9999999999x1", "block:0x1", "os:system",
    "meta", "cuda:99", "/dev/null", "~nobody/x", "shipped:x", "robustbench:", "robustbench:X", [], [[]], [1, "a"],
    {}, {"a": 1}, {"name": None}, [0] * 1000, "1" * 400, "\u202e", "\ud800", "!!bool x",
]  # fmt: skip


def dotted(fields: dict[str, Any], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, value in fields.items():
        names += [prefix + name, *(dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else ())]
    return names


@pytest.mark.slow
def test_mutated_configs(
    told: Callable[..., str], config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(1)
    good = yaml.safe_load(config_file.read_text())
    fields = dotted(PwoAConfig.from_yaml(config_file).model_dump())
    ends = []
    for _ in range(200):
        config = copy.deepcopy(good)
        for name in draw.sample(fields, draw.choice([1, 1, 1, 2, 4])):
            *sections, key = name.split(".")
            place = config
            for section in sections:
                place[section] = place[section] if isinstance(place.get(section), dict) else {}
                place = place[section]
            place[draw.choice([key, key, key, key, key + "s"])] = draw.choice(draw.choice([NUMBERS, OTHERS]))
        (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config, allow_unicode=False))
        ends.append(told("prune", tmp_path / "bad.yaml", "--out", tmp_path / "out", "--quiet"))
    report("mutated configs", ends, capsys)
    assert ends.count("refused") > 120


def numbers_of(kind: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        nested = [each for each in (field.annotation, *get_args(field.annotation)) if isinstance(each, type)]
        sections = [each for each in nested if issubclass(each, Section)]
        if sections:
            yield from numbers_of(sections[0], f"{prefix}{name}.")
        elif {int, float} & {*nested, *(part for each in get_args(field.annotation) for part in get_args(each))}:
            yield prefix + name


@pytest.mark.slow
def test_every_number_at_its_extremes(capsys: pytest.CaptureFixture[str]) -> None:
    """In Python, with training: refused, or the loss is not finite, or it works."""
    ends = []
    extremes = [*NUMBERS, 1e-37, 1e38, 1e-30, 1e30, 1e-20, 1e20, 1e-8, 1e8, 2**53, "1e-300", 3]
    named = {"milestones": "multistep", "gamma": "multistep", "factors": "cycle", "warmup": "cosine", "momentum": "sgd"}
    for field in numbers_of(TrainingConfig):
        for value in extremes:
            *sections, key = field.split(".")
            fields: dict[str, Any] = {"sparsity": 0.5, "epochs": 3, "eps": 0.1, "batch_size": 16, "progress": False}
            place = fields
            for section in sections:
                place = place.setdefault(section, {"epochs": 1} if section in ("admm", "gradual") else {})
            place |= {"name": named[key]} if key in named else {}
            place[key] = {"pixel_range": [0.0, value]}.get(key, [value] if key in ("milestones", "factors") else value)
            try:
                config = PwoAConfig(train_loader=make_images(32), **fields)
                if config.epochs > 100:
                    continue  # too long to try
                Trainer(TinyNet(), config).fit()
                ends.append("works")
            except PwoAError as error:
                assert "\n" not in str(error)  # noqa: PT017
                ends.append(type(error).__name__)
    report("extreme numbers", ends, capsys)
    assert len(ends) > 600


TEXTS: list[str | bytes] = [
    "!!bool x", "!!timestamp abc", '!!float ""', "!!int [a]", '"\\U99999999"', '!!int ""', "!!int 0b12", "!!null x",
    "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!binary '%%%'", "!!binary aGk=", "!!timestamp 2020-01-01",
    "!!timestamp 2020-99-99", "!!python/object/apply:os.system ['echo hi']", "!!python/name:os.system", "!own x", "!<>",
    "!!str [a]", "!!seq x", "!!map x", "!!float {a: 1}", "&a [*a]", "*a", "[&a 1, *a]", "<<: x", "[", "{", "{a: 1", "'",
    '"', '"\\xZZ"', "|99\n a", "- - a: b: c", "a: b: c", "? [a]\n: 1", "{[a]: 1}", "{{a: 1}: 1}", "{a: 1, a: 2}", "@a",
    "%YAML 9.9\n---\n1", "%TAG ! x\n---\n!a 1", "---\n1\n---\n2", "\t- a", "1" * 5000, "0x" + "f" * 5000, "1e999999",
    "[" * 100_000, "{a: " * 100_000, "- " * 100_000, "\x00", "a\x1b[31m", "\x7f", "=", ".inf", ".nan", "-.inf", "~", "",
    b"\xff\xfea\x00", b"\xfe\xff\x00a", b"\xff\xfe\x00", b"\x80", b"\xe9", b"\xff" * 1000, b"\x00" * 1000, "x" * 10**7,
    "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(9)),
    "{" + "".join(f"k{i}: 1, " for i in range(9_000)) + "}", "[" + "1," * 45_000 + "]",
]  # fmt: skip


@pytest.mark.slow
def test_yaml_texts(
    told: Callable[..., str], config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = []
    for text in TEXTS:
        content = text.encode() if isinstance(text, str) else text
        for written in (content, b"epochs: 1\nsparsity: " + content, config_file.read_bytes() + b"\nseed: " + content):
            (tmp_path / "bad.yaml").write_bytes(written)
            ends.append(told("prune", tmp_path / "bad.yaml", "--out", tmp_path / "out", "--quiet"))
        if isinstance(text, str):
            set_to = f"epochs={text}"
            ends.append(told("prune", config_file, "--out", tmp_path / "out", "--quiet", "--set", set_to))
    report("YAML texts", ends, capsys)
    assert ends.count("refused") > 0.95 * len(ends)


# -- checkpoints ----


class Payload:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def as_pt(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + data


def odd_checkpoints(payload: Path) -> list[bytes]:
    good = robust_lenet().state_dict()
    bias = good["fc2.bias"]
    bad = Payload(payload)
    states: list[Any] = [
        [], {}, 3, "text", None, bias, {"state_dict": 5}, {"state_dict": {"state_dict": {}}}, {"epoch": 1}, {1: bias},
        {None: bias}, {"\x1b[31m": bias}, {"a\nb": bias}, {f"k{i}": bias[:1] for i in range(5000)},
        {"module": good, "ema": 3}, {"model": [good]},
        *({**good, "fc2.bias": odd} for odd in (
            bias * float("nan"), bias * float("inf"), bias.bool(), bias.to(torch.complex64), bias[:3], bias[None],
            bias.to("meta"), bias.to_sparse(), torch.zeros(1).expand(10**12), torch.zeros(0), 3, "x", None, [1.0],
            torch.quantize_per_tensor(bias, 0.1, 0, torch.qint8), {"a": bias}, torch.nn.Parameter(bias[:2]),
        )),
        {name: tensor for name, tensor in good.items() if "fc1" not in name}, {**good, "conv9.weight": bias},
        {f"layer{i}": tensor for i, tensor in enumerate(good.values())}, {"a.b." * 500 + "c": bias},
    ]  # fmt: skip
    payloads: list[Any] = [{"state_dict": good, "more": bad}, [bad], {**good, "a": bad}, {"state_dict": bad}, bad]
    tensor = '"dtype":"F32","shape":[1],"data_offsets":[0,4]'
    headers = [
        header("{}"), header("["), header("{" * 10_000), header('{"a":1}'), header(f'{{"a":{{{tensor}}}}}'),
        header(f'{{"a":{{{tensor}}}}}', b"1234" * 9), header('{"a":{"dtype":"X","shape":[1],"data_offsets":[0,4]}}'),
        header('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"1234"),
        header('{"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}}', b"1234"),
        (2**63).to_bytes(8, "little") + b"{}", (10**9).to_bytes(8, "little") + b"{}",
    ]  # fmt: skip
    return [
        *map(as_pt, states),
        *map(as_pt, payloads),
        *(as_pt(value, _use_new_zipfile_serialization=False) for value in payloads),
        *(pickle.dumps(value, protocol=protocol) for value in payloads for protocol in range(6)),
        *headers,
        b"", b"x", b"\x80\x02.", b"PK\x03\x04" * 100, b"<html>", b"version https://git-lfs", b"\x89PNG\r\n",
    ]  # fmt: skip


@pytest.mark.slow
def test_checkpoints(
    told: Callable[..., str], config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(2)
    payload = tmp_path / "payload"
    files = odd_checkpoints(payload)
    whole = [save(robust_lenet().state_dict()), as_pt(robust_lenet().state_dict()), *files[-60:-30]]
    for _ in range(60):  # cut short, or bytes changed near the beginning or the end, where the structure is
        content = bytearray(draw.choice(whole))
        if draw.random() < 0.3:
            del content[draw.randrange(len(content)) :]
        for _ in range(draw.randrange(4)):
            if content:
                near = draw.randrange(min(1500, len(content)))
                content[draw.choice([near, len(content) - 1 - near])] = draw.randrange(256)
        files.append(bytes(content))
    ends = []
    for content in files:
        name = tmp_path / draw.choice(["a.pt", "a.pth", "a.safetensors", "a"])
        name.write_bytes(content)
        ends.append(told("prune", config_file, "--checkpoint", name, "--out", tmp_path / "out", "--quiet"))
        assert not payload.exists()
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path / "pipe", tmp_path, "/dev/zero", "a" * 5000, "", "~nobody/x", "\udcff"):
        ends.append(told("prune", config_file, "--checkpoint", odd, "--out", tmp_path / "out", "--quiet"))
    report("checkpoints", ends, capsys)
    assert ends.count("refused") > 0.8 * len(ends)


# -- arguments ----

ODD = [
    "", " ", "-1", "0", "1", "1e400", "nan", "inf", "9" * 400, "9" * 20, "1e-300", "true", "\x1b[31m", "a\nb", "\u00e9",
    "\u202e", "\udcff", "/dev/null", "/dev/zero", "/", "..", "a" * 5000, "~nobody/x", "{}", "[", "!!bool x", "1/0",
    "8/255", "meta", "cuda:99", "PGD-0", "PGD-" + "9" * 30, "L7", "os:system", "sys:exit", ":", "a:", "robustbench:X",
    "shipped:x", "=", "a=b", "=b", "a=", "--", "-", "--seed", "PIPE", "CONFIG", "RUN",
]  # fmt: skip


@pytest.mark.slow
def test_arguments(
    told: Callable[..., str], config_file: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(3)
    os.mkfifo(tmp_path / "pipe")
    shutil.copytree(finished, tmp_path / "run")
    names = {"CONFIG": str(config_file), "RUN": str(tmp_path / "run"), "PIPE": str(tmp_path / "pipe")}
    judging = ["--attacks", "FGSM", "--sample", "5", "--quiet"]
    lines = {
        Init: ["init", "new.yaml"],
        Prune: ["prune", "CONFIG", "--out", "out", "--quiet"],
        Evaluate: ["evaluate", "RUN", *judging],
        Compare: ["compare", "RUN", "--out", "out", *judging],
        Show: ["show", "RUN"],
    }
    ends = []
    for _ in range(300):
        command, line = draw.choice(list(lines.items()))
        options = [f"--{name.replace('_', '-')}" for name in command.__dataclass_fields__ if name not in ("force",)]
        line = list(line)
        if draw.random() < 0.3:
            line[draw.randrange(1, len(line))] = draw.choice(ODD)
        else:
            line += [draw.choice(options), draw.choice(ODD), *draw.choice([[], [], [draw.choice(ODD)]])]
        ends.append(told(*(names.get(argument, argument) for argument in line)))
        (tmp_path / "new.yaml").unlink(missing_ok=True)
    report("argument lines", ends, capsys)
    assert ends.count("refused") > 150
