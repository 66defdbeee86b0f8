"""Two hundred malformed files, each told in one line with status 2, and nothing in them is ever run."""

from __future__ import annotations

import copy
import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from pwoa_plugin import PwoAConfig
from pwoa_plugin.masks import load_masks, save_masks
from pwoa_plugin.models import robust_lenet
from pwoa_plugin.runs.prune import prune

pytestmark = pytest.mark.usefixtures("undrawn")

Run = Callable[..., tuple[int, str, str]]

# The fixtures are folders to write in, and the same for all examples.
many = settings(
    max_examples=67, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(autouse=True)
def never_trained(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """What is malformed is refused before training, and before any attack."""

    def fault(*_: object, **__: object) -> None:
        raise AssertionError("came to training or judging")

    if "finished" in request.fixturenames:
        request.getfixturevalue("finished")  # made before training is forbidden
    monkeypatch.setattr("pwoa_plugin.runs.prune._train", fault)
    monkeypatch.setattr("pwoa_plugin.runs.evaluate.judge_task", fault)


def is_told(result: tuple[int, str, str]) -> None:
    status, out, err = result
    assert status == 2, err
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert ": error: " in err
    assert "Traceback" not in err
    assert len(err) < 2000


odd = st.one_of(
    st.none(),
    st.sampled_from([-1, 0, 2, 1e9, float("nan"), "many", "", "0.5.5", [], [1], {}, {"a": 1}, True]),
    st.text(max_size=5),
)
GOOD: dict[str, Any] = {
    "sparsity": 0.9,
    "data": {"name": "mnist", "root": "ROOT", "download": False},
    "model": {"arch": "lenet", "checkpoint": "shipped:robust_lenet_mnist"},
}


def dotted(fields: dict[str, Any], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, value in fields.items():
        names += [prefix + name, *(dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else ())]
    return names


# `output` may be any text: a name that counts only where the network answers with several outputs.
FIELDS = [field for field in dotted(PwoAConfig(**GOOD).model_dump()) if field != "output"]


@st.composite
def bad_configs(draw: st.DrawFn) -> bytes:
    """Text that is no YAML, YAML that is no mapping, mappings with a key or a value that is no config's."""
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(st.binary(min_size=1, max_size=80)) + b"\n]["
    if kind == 1:
        return yaml.safe_dump(draw(st.lists(odd) | st.text() | st.integers() | st.none())).encode()
    config = copy.deepcopy(GOOD)
    path = draw(st.sampled_from(FIELDS))
    *sections, key = path.split(".")
    place = config
    for section in sections:
        place = place.setdefault(section, {})
    if kind == 2:
        place[draw(st.text(st.characters(categories=["Ll"]), min_size=6, max_size=9)) + "_"] = draw(odd)
    elif kind == 3:
        place[key] = {"surely": ["no", "value"]}
    else:
        place[key] = draw(st.sampled_from([-1e300, float("nan"), [[[]]], "surely no value"]))
    return yaml.safe_dump(config).encode()


@many
@given(content=bad_configs())
def test_configs(content: bytes, pwoa: Run, tmp_path: Path, mnist_root: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(content.replace(b"ROOT", os.fsencode(mnist_root)))
    is_told(pwoa("prune", tmp_path / "bad.yaml", "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


class Payload:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def as_pt(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def odd_states() -> list[Any]:
    good = robust_lenet().state_dict()
    nan = {**good, "fc2.bias": good["fc2.bias"] * float("nan")}
    renamed = {f"layer{i}": tensor for i, tensor in enumerate(good.values())}
    reshaped = {name: tensor.reshape(1, *tensor.shape) for name, tensor in good.items()}
    short = {name: tensor for name, tensor in good.items() if "fc1" not in name}
    extra = {**good, "conv9.weight": torch.zeros(3)}
    return [nan, renamed, reshaped, short, extra]


@st.composite
def bad_checkpoints(draw: st.DrawFn, payload: Path) -> bytes:
    """Cut short, random, renamed, reshaped, not finite, no tensors, or objects that would run code."""
    good = robust_lenet().state_dict()
    kind = draw(st.integers(0, 5))
    whole = draw(st.sampled_from([save(good), as_pt(good)]))
    if kind == 0:
        return whole[: draw(st.integers(0, len(whole) - 1000))]
    if kind == 1:
        return draw(st.binary(max_size=200))
    if kind == 2:
        state = draw(st.sampled_from(odd_states()))
        return draw(st.sampled_from([save, as_pt]))(state)
    if kind == 3:
        return as_pt(draw(st.sampled_from([[], {}, 3, "text", {"state_dict": 5}, {"epoch": 1}, torch.zeros(3)])))
    if kind == 4:
        return pickle.dumps(Payload(payload), protocol=draw(st.integers(0, 5)))
    return as_pt(
        draw(
            st.sampled_from(
                [{"state_dict": good, "more": Payload(payload)}, [Payload(payload)], good | {"a": Payload(payload)}]
            )
        )
    )


@many
@given(data=st.data())
def test_checkpoints(data: st.DataObject, pwoa: Run, config_file: Path, tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    name = data.draw(st.sampled_from(["a.pt", "a.pth", "a.safetensors", "a"]))
    (tmp_path / name).write_bytes(data.draw(bad_checkpoints(payload)))
    is_told(pwoa("prune", config_file, "--checkpoint", tmp_path / name, "--out", tmp_path / "out"))
    assert not payload.exists()
    assert not (tmp_path / "out").exists()


@st.composite
def bad_masks(draw: st.DrawFn, good: Path) -> bytes:
    """Cut short, random, of another network, of other values, or no masks at all."""
    whole, masks = good.read_bytes(), load_masks(good)
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return whole[: draw(st.integers(0, len(whole) - 1))]
    if kind == 1:
        return draw(st.binary(max_size=200))
    if kind == 2:
        return save(robust_lenet().state_dict())
    if kind == 3:
        place = draw(st.integers(0, 7))
        return whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :]  # the header's length
    layer = draw(st.sampled_from(sorted(masks)))
    if kind == 4:
        masks[layer + "x"] = masks.pop(layer)
    else:
        mask = masks[layer]["weight"]
        masks[layer]["weight"] = draw(st.sampled_from([mask.flatten(), mask[:1], 1 - mask]))
    path = good.with_name("drawn.safetensors")
    save_masks(masks, path)
    return path.read_bytes()


@many
@given(data=st.data())
def test_masks(data: st.DataObject, finished: Path, pwoa: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    if not run.exists():
        shutil.copytree(finished, run)
        shutil.copy(run / "masks.safetensors", tmp_path / "good.safetensors")
    (run / "masks.safetensors").write_bytes(data.draw(bad_masks(tmp_path / "good.safetensors")))
    is_told(pwoa("evaluate", run, "--attacks", "FGSM", "--images", 5, "--quiet"))


def test_the_payload_would_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "payload")))  # noqa: S301 (what the package never does)
    assert (tmp_path / "payload").exists()


@pytest.mark.parametrize("file", ["run.json", "config.yaml", "pruned.safetensors"])
def test_other_files_of_a_run(finished: Path, pwoa: Run, tmp_path: Path, file: str) -> None:
    shutil.copytree(finished, tmp_path / "run")
    for content in (b"", b"nothing", b"{}", b"[1]", (finished / file).read_bytes()[:100]):
        (tmp_path / "run" / file).write_bytes(content)
        is_told(pwoa("evaluate", tmp_path / "run", "--attacks", "FGSM", "--images", 5))
        if file == "run.json":
            is_told(pwoa("show", tmp_path / "run"))


def test_pruned_weights_of_another_run(finished: Path, pwoa: Run, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    weights = load_file(tmp_path / "run" / "pruned.safetensors")
    weights["fc1.weight"] = weights["fc1.weight"].flip(0)
    save_file(weights, tmp_path / "run" / "pruned.safetensors")
    status, _, err = pwoa("evaluate", tmp_path / "run", "--attacks", "FGSM", "--images", 5)
    assert status == 2
    assert "fc1.weight is not 0 where masks.safetensors prunes it" in err
    assert prune.__module__ == "pwoa_plugin.runs.prune"
