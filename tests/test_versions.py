from __future__ import annotations

import importlib.metadata
import platform

import pytest
import torch

from pwoa_plugin._versions import installed_versions


def test_versions_of_python_and_the_packages_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without_nni(name: str) -> str:
        if name == "nni":
            raise importlib.metadata.PackageNotFoundError
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_nni)
    versions = installed_versions()
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == torch.__version__
    assert versions["art"] == version("adversarial-robustness-toolbox")
    assert "nni" not in versions
