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


def loaded_by(statement: str) -> set[str]:
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_star_needs_no_optional_package() -> None:
    optional = ["pytorch_lightning", "transformers", "onnx", "onnxruntime", "executorch", "timm", "huggingface_hub"]
    optional += ["robustbench", "tensorboard", "wandb", "mlflow", "mlxtend"]
    hidden = f"import sys; sys.modules.update(dict.fromkeys({optional}))"
    used = ["PwoAPruner", "evaluate", "save_pruned", "export_onnx", "TensorBoard", "WandB", "MLflow", "save_sparse"]
    modules = loaded_by(f"{hidden}; from pwoa_plugin import *; {', '.join(used)}")
    assert "torch_pruning" in modules
    assert {"LightningEvaluator", "TransformersEvaluator"} <= set(dir(pwoa_plugin))


def test_import_loads_no_toolkit_and_not_even_torch() -> None:
    assert not {"torch", "nni", "art", "numpy", "pydantic"} & loaded_by("import pwoa_plugin")


def test_method_needs_torch_and_no_toolkit() -> None:
    modules = loaded_by("import pwoa_plugin.method.loss, pwoa_plugin.config, pwoa_plugin.method.oneshot")
    assert "torch" in modules
    assert not {"nni", "art", "torch_pruning", "torchvision"} & modules


def test_removal_knows_torch_pruning_and_no_door() -> None:
    modules = loaded_by("import pwoa_plugin.removal")
    assert "torch_pruning" in modules
    assert not {"nni", "art", "pwoa_plugin.nni", "pwoa_plugin.robustness", "pwoa_plugin.config"} & modules


def test_robustness_knows_nothing_of_pruning() -> None:
    modules = loaded_by("import pwoa_plugin.robustness")
    assert not {"nni", "torch_pruning"} & modules
    assert not any(name.startswith(("pwoa_plugin.method", "pwoa_plugin.nni", "pwoa_plugin.config")) for name in modules)
