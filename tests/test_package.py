from __future__ import annotations

import json
import subprocess
import sys

import pytest

import pwoa_plugin


def test_public_names_are_there() -> None:
    for name in pwoa_plugin.__all__:
        assert getattr(pwoa_plugin, name) is not None
    assert set(pwoa_plugin.__all__) <= set(dir(pwoa_plugin))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pwoa_plugin.nothing


OPTIONAL = ["pytorch_lightning", "transformers", "onnx", "onnxruntime", "executorch", "timm", "huggingface_hub"]
OPTIONAL += ["robustbench", "tensorboard", "wandb", "mlflow", "mlxtend"]
STATEMENTS = {
    "star": f"sys.modules.update(dict.fromkeys({OPTIONAL}));"
    "from pwoa_plugin import *; PwoAPruner, evaluate, save_sparse, export_onnx, TensorBoard, WandB, MLflow",
    "method": "import pwoa_plugin.method.loss, pwoa_plugin.config, pwoa_plugin.method.oneshot",
    "removal": "import pwoa_plugin.removal",
    "robustness": "import pwoa_plugin.robustness",
}
AFTER_TORCH = """
import json, os, sys, torch
for name, statement in {statements!r}.items():
    if not (child := os.fork()):
        exec(statement)
        print(json.dumps([name, sorted(sys.modules)]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, statement
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The modules that each statement loads, in a fork of one fresh process that has imported torch."""
    code = AFTER_TORCH.format(statements=STATEMENTS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]  # packages may print, too
    return {name: set(modules) for name, modules in map(json.loads, lines)}


def test_a_star_needs_no_optional_package(loaded: dict[str, set[str]]) -> None:
    assert "torch_pruning" in loaded["star"]
    assert {"LightningEvaluator", "TransformersEvaluator"} <= set(dir(pwoa_plugin))


def test_import_loads_no_toolkit_and_not_even_torch() -> None:
    code = "import pwoa_plugin, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "nni", "art", "numpy", "pydantic"} & set(done.stdout.split())


def test_method_needs_torch_and_no_toolkit(loaded: dict[str, set[str]]) -> None:
    assert "pwoa_plugin.method.loss" in loaded["method"]
    assert not {"nni", "art", "torch_pruning", "torchvision"} & loaded["method"]


def test_removal_knows_torch_pruning_and_no_door(loaded: dict[str, set[str]]) -> None:
    assert "torch_pruning" in loaded["removal"]
    assert not {"nni", "art", "pwoa_plugin.nni", "pwoa_plugin.robustness", "pwoa_plugin.config"} & loaded["removal"]


def test_robustness_knows_nothing_of_pruning(loaded: dict[str, set[str]]) -> None:
    modules = loaded["robustness"]
    assert not {"nni", "torch_pruning"} & modules
    assert not any(name.startswith(("pwoa_plugin.method", "pwoa_plugin.nni", "pwoa_plugin.config")) for name in modules)
