"""Versions in reports."""

from __future__ import annotations

import platform

import torch

import pwoa_plugin
from pwoa_plugin._versions import installed_versions


def test_versions_of_what_bears_on_a_result() -> None:
    versions = installed_versions()
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == torch.__version__
    assert versions["pwoa_plugin"] == pwoa_plugin.__version__
    assert {"nni", "torch_pruning", "art", "numpy"} <= versions.keys()
