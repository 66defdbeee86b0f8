"""Versions of the packages that a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform

_PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "art": "adversarial-robustness-toolbox",
    "pyautoattack": "pyautoattack",
    "nni": "nni",
    "torch_pruning": "torch-pruning",
    "numpy": "numpy",
    "pwoa_plugin": "pwoa-plugin",
}


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on; missing packages are left out."""
    import torch

    versions = {"python": platform.python_version()}
    for name, distribution in _PACKAGES.items():
        try:
            versions[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    versions["torch"] = torch.__version__  # with its build, as in 2.15.0+cu130
    return versions
