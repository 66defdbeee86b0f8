"""timm's and torchvision's classifiers, pruned by default and judged, or refused in one line."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _benchmark() -> ModuleType:
    """``benchmarks/networks.py``, which is not installed."""
    path = Path(__file__).parents[1] / "benchmarks" / "networks.py"
    spec = importlib.util.spec_from_file_location("networks_of_the_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


table = _benchmark()
# Depthwise convolutions and gates; attention, and a parameter as input; patches in the batch; channels in two halves.
FAST = ("ghostnet_050", "xcit_nano_12_p16_224", "mobilevit_xxs", "shufflenet_v2_x0_5")
NETWORKS = {network.name: network for network in table.NETWORKS}


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS])
def test_pruned_by_default_and_judged(name: str) -> None:
    if NETWORKS[name].library == "timm":
        pytest.importorskip("timm")
    outcome = table.prune_and_judge(NETWORKS[name])
    assert not outcome.refused, outcome.refused
    assert outcome.hidden == 8
    assert outcome.sparsity == pytest.approx(0.5, abs=1e-3)
    assert 0 <= outcome.judged <= 1
