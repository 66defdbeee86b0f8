"""Networks and weights of the Hugging Face Hub and of timm, from a cache on this machine and from a server on it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from data.files import write_folder

pytest.importorskip("timm")

import huggingface_hub
import timm
from models.hub_files import NETWORK, hub_server, into_cache, write_repo

from pwoa_plugin import PwoAConfig
from pwoa_plugin.config import ConfigError
from pwoa_plugin.errors import InputError
from pwoa_plugin.models import CheckpointError, load_checkpoint, source_of
from pwoa_plugin.models.sources import Wanted
from pwoa_plugin.runs.network import load_weights, network_of, with_own

REPO = "someone/robust"
THREE = Wanted(classes=3, channels=3)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, and no network."""
    for name, value in {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": True}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    return tmp_path / "hub"


@pytest.fixture
def network(cache: Path, tmp_path: Path) -> torch.nn.Module:
    """A network of timm's, in the cache."""
    model = write_repo(tmp_path / "repo").eval()
    into_cache(cache, REPO, tmp_path / "repo")
    return model


def settings(root: Path, *, image_size: int | None = None, **model: Any) -> PwoAConfig:
    data = {"name": "folder", "root": str(root), "image_size": image_size}
    return PwoAConfig(sparsity=0.5, data=data, model={"checkpoint": f"hf:{REPO}"} | model)


def change(cache: Path, **entries: Any) -> None:
    path = next(cache.rglob("config.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_network_and_its_weights_are_those_of_timm_itself(network: torch.nn.Module) -> None:
    source = source_of(f"hf:{REPO}")
    assert source is not None
    made = source.build(f"hf:{REPO}", THREE)
    load_checkpoint(made, f"hf:{REPO}")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(made.eval()(x), network(x))
    expected = timm.data.resolve_model_data_config(network)
    own = source.describe(f"hf:{REPO}")
    assert (own.mean, own.std) == (expected["mean"], expected["std"])
    assert (own.classes, own.size, own.fixed_size) == (3, 160, False)


def test_an_architecture_of_timm_with_weights_of_the_hub(network: torch.nn.Module, tmp_path: Path) -> None:
    write_folder(tmp_path / "images")
    config, notes = with_own(settings(tmp_path / "images", arch=f"timm:{NETWORK}"), None)
    assert config.model is not None
    assert config.data is not None
    assert config.data.image_size == 160
    assert config.model.mean == (0.485, 0.456, 0.406)
    assert [note.partition(" ")[0] for note in notes] == ["took", "took"]
    made = network_of(config, None, classes=3, channels=3)
    load_weights(made, config.model.checkpoint)
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (config.model.mean, config.model.std))
    torch.testing.assert_close(made(x), network((x - mean) / std))


def test_what_the_user_gives_wins_and_is_said(
    network: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_folder(tmp_path / "images")
    given = settings(tmp_path / "images", image_size=12, mean=[0.5] * 3, std=[1.0] * 3)
    config, notes = with_own(given, None)
    assert config.model is not None
    assert config.model.mean == (0.5, 0.5, 0.5)
    assert notes[0] == f"hf:{REPO} was trained on images of 160 x 160; these have 12 x 12"
    assert "model.mean and model.std are yours" in notes[1]
    assert notes[1] in caplog.text
    again, none = with_own(config.model_copy(update={"model": config.model}), None)  # as a resumed run does
    assert (again.model, none) == (config.model, notes)


def test_weights_alone_need_an_architecture(cache: Path, network: torch.nn.Module, tmp_path: Path) -> None:
    (next(cache.rglob("config.json"))).write_text('{"model_type": "vit"}')
    write_folder(tmp_path / "images")
    config, notes = with_own(settings(tmp_path / "images", image_size=12), None)
    assert notes == ()
    with pytest.raises(ValueError, match=r"names no network of timm; give model\.arch"):
        network_of(config, None, classes=3, channels=3)
    config, notes = with_own(settings(tmp_path / "images", image_size=12, arch=f"timm:{NETWORK}"), None)
    assert config.model is not None
    assert config.model.mean == (0.485, 0.456, 0.406)  # the architecture's


def test_a_network_of_other_classes_or_of_one_size_is_refused_before_training(
    cache: Path, network: torch.nn.Module, tmp_path: Path
) -> None:
    write_folder(tmp_path / "images", classes=("cat", "dog"))
    with pytest.raises(ConfigError, match=r"has 3 classes, and the images have 2; .*model.num_classes=3"):
        with_own(settings(tmp_path / "images"), None)
    with_own(settings(tmp_path / "images", num_classes=3), None)
    with pytest.raises(ConfigError, match=r"takes images of 160 x 160, and these have 12 x 12; give data.image_size"):
        with_own(settings(tmp_path / "images", image_size=12, arch="timm:test_vit", num_classes=3), None)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"architecture": "resnet999"}, "has no network 'resnet999'; did you mean"),
        ({"model_args": {"checkpoint_path": "evil.pt"}}, "sets model_args.checkpoint_path, which is no option"),
        ({"model_args": {"no_such": 1}}, f"does not build {NETWORK} "),
        ({"model_args": {"stem_chs": -1}}, f"does not build {NETWORK} "),
        ({"model_args": [1]}, r"is not one of timm \(model_args is no object\)"),
        ({"pretrained_cfg": [1]}, "is not one of timm"),
    ],
)
def test_a_config_json_that_cannot_be_used(
    cache: Path, network: torch.nn.Module, entries: dict[str, Any], said: str
) -> None:
    change(cache, **entries)
    source = source_of(f"hf:{REPO}")
    assert source is not None
    with pytest.raises(ValueError, match=said) as refused:
        source.build(f"hf:{REPO}", THREE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"input_size": 224},
        {"input_size": [3, 224]},
        {"input_size": ["3", "a", "a"]},
        {"mean": 0.5},
        {"mean": [None] * 3, "std": [None] * 3},
        {"num_classes": "three"},
        {"num_classes": [3]},
    ],
)
def test_a_config_json_that_says_what_cannot_be_is_told(
    cache: Path, network: torch.nn.Module, entry: dict[str, Any], tmp_path: Path
) -> None:
    change(cache, pretrained_cfg=json.loads(next(cache.rglob("config.json")).read_text())["pretrained_cfg"] | entry)
    if "num_classes" in entry:
        change(cache, **entry)
    write_folder(tmp_path / "images")
    with pytest.raises(InputError, match="says no usable classes, mean, std or size") as refused:
        with_own(settings(tmp_path / "images"), None)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["hf:a--b/c", "hf:a/b.git", "hf:-a/b", "hf:a/..", f"hf:a/{'b' * 200}", f"hf:{REPO}/../x"]
)
def test_a_name_that_the_hub_cannot_have_is_told(cache: Path, network: torch.nn.Module, name: str) -> None:
    name += ".safetensors" * name.endswith("/x")
    with pytest.raises(CheckpointError, match="the hub can have no such name") as refused:
        load_checkpoint(network, name)
    assert "\n" not in str(refused.value)


def test_weights_in_several_files_are_told(cache: Path, network: torch.nn.Module) -> None:
    file = next(cache.rglob("model.safetensors"))
    file.rename(file.with_name("model-00001-of-00002.safetensors"))
    with pytest.raises(CheckpointError, match="is not in the hub's cache"):
        load_checkpoint(network, f"hf:{REPO}")
    (file.parent / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="its weights are in several files, and one is read"):
        load_checkpoint(network, f"hf:{REPO}")


@pytest.mark.parametrize("name", ["hf:robust", "hf:a/b/pytorch_model.bin", "hf:a/b c"])
def test_a_malformed_name_is_refused(cache: Path, name: str) -> None:
    with pytest.raises(ValueError, match="give hf:owner/name, hf:owner/name@revision or"):
        load_checkpoint(torch.nn.Linear(1, 1), name)


def test_without_a_network_one_line_says_what_to_do(network: torch.nn.Module) -> None:
    with pytest.raises(CheckpointError, match=r"is not in the hub's cache .*did you mean someone/robust\?$") as refused:
        load_checkpoint(network, "hf:someone/robus")
    assert "run again with network access" in str(refused.value)
    assert "\n" not in str(refused.value)


class GoneError(Exception):
    """As the errors of httpx, which are no OSErrors."""


def gone(*_: object, **__: object) -> None:
    raise GoneError("peer closed connection")


def test_files_are_downloaded_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    made = write_repo(tmp_path / "repo")
    shutil.copy(tmp_path / "repo" / "model.safetensors", tmp_path / "repo" / "other.safetensors")
    with hub_server(REPO, tmp_path / "repo") as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        other = timm.create_model(NETWORK, num_classes=3)
        load_checkpoint(other, f"hf:{REPO}/other.safetensors")
        assert all(torch.equal(value, made.state_dict()[name]) for name, value in other.state_dict().items())
        with pytest.raises(CheckpointError, match=r"has no none.safetensors; name another file.*Pickled"):
            load_checkpoint(other, f"hf:{REPO}/none.safetensors")
        with pytest.raises(CheckpointError, match=r"the hub has no someone/else, or it is private"):
            load_checkpoint(other, "hf:someone/else")
        monkeypatch.setattr("huggingface_hub.file_download.http_get", gone)
        (tmp_path / "repo" / "third.safetensors").write_bytes(b"another content")
        with pytest.raises(CheckpointError, match=r"third.safetensors cannot be downloaded \(GoneError: peer closed"):
            load_checkpoint(other, f"hf:{REPO}/third.safetensors")
    load_checkpoint(other, f"hf:{REPO}/other.safetensors")  # the server is gone


def test_no_pickle_is_read(cache: Path, network: torch.nn.Module) -> None:
    file = next(cache.rglob("model.safetensors"))
    file.unlink()
    torch.save({"weight": torch.ones(1)}, file)
    with pytest.raises(CheckpointError):
        load_checkpoint(network, f"hf:{REPO}")


# -- timm ----


def test_weights_of_timm_are_those_of_its_repository(cache: Path, tmp_path: Path) -> None:
    model = write_repo(tmp_path / "repo", classes=1000)
    into_cache(cache, f"timm/{NETWORK}.r160_in1k", tmp_path / "repo")
    source = source_of(f"timm:{NETWORK}")
    assert source is not None
    assert source.describe(f"timm:{NETWORK}").classes == 1000
    made = source.build(f"timm:{NETWORK}.r160_in1k", Wanted(classes=1000, channels=3))
    load_checkpoint(made, f"timm:{NETWORK}")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:resnet5", "timm has no network 'resnet5'; did you mean .*resnet50"),
        ("timm:resnet50.a1_in2k", "timm has no such weights of resnet50; did you mean resnet50.a1_in1k"),
        ("timm:resnet50.a1_in1k", "model.safetensors of timm/resnet50.a1_in1k is not in the hub's cache"),
        (
            "timm:convnext_base.clip_laion2b",
            "has no safetensors of it; name timm:convnext_base.clip_laion2b_augreg_ft_in1k, .*, or give",
        ),
        ("timm:test_vit2", "timm has no network 'test_vit2'; did you mean test_vit"),
    ],
)
def test_what_timm_has_not(cache: Path, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        load_checkpoint(torch.nn.Linear(1, 1), name)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_of_timm_decides_the_architecture() -> None:
    with pytest.raises(ConfigError, match="arch='lenet' does not go with timm:resnet50"):
        PwoAConfig(sparsity=0.5, model={"checkpoint": "timm:resnet50", "arch": "lenet"})


def test_from_the_command_line(
    network: torch.nn.Module,
    tmp_path: Path,
    pwoa: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_folder(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    data = "{name: folder, root: images, image_size: 32, validation: 0, augment: false}"
    Path("prune.yaml").write_text(
        f"sparsity: 0.5\neps: 8/255\nepochs: 1\nbatch_size: 12\nadmm: {{epochs: 0}}\ndata: {data}\n"
        "model: {arch: lenet, checkpoint: robust.pt}\n"
    )
    names = ["--set", f"model.arch=timm:{NETWORK}", "--set", f"model.checkpoint=hf:{REPO}"]
    status, _, err = pwoa("prune", "prune.yaml", "--out", "run", *names)
    assert status == 0, err
    assert "took over mean (0.485, 0.456, 0.406)" in caplog.text
    facts = json.loads(Path("run/run.json").read_text())["model"]
    assert (facts["arch"], facts["checkpoint"]) == (f"timm:{NETWORK}", f"hf:{REPO}")
    assert any("took over mean" in note for note in facts["notes"])
    how = ["--attacks", "FGSM", "--sample", 4]
    status, out, err = pwoa("evaluate", "run", "--dense", *how, "--quiet")
    assert status == 0, err
    assert "dense: 4 images" in out
    data_options = ["--data", "folder", "--data-root", "images", "--image-size", 32, "--eps", "8/255"]
    status, out, err = pwoa("compare", f"hf:{REPO}", "run", *data_options, *how)
    assert status == 0, err
    assert "took over its mean (0.485" in caplog.text
    assert "robust" in out
    status, _, err = pwoa("evaluate", "hf:someone/robus", *data_options, *how)
    assert status == 2
    assert err.count("\n") == 1
    assert "did you mean someone/robust?" in err
