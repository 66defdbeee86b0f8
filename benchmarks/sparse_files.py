"""Bytes of sparse files, and the seconds that writing and loading take.

    python -m benchmarks.sparse_files [--networks lenet vgg16-cifar resnet50] [--compressions 16 100]

Weights are pruned once by magnitude (LAMP), and not trained: bytes do not depend on that. ``dense`` is the safetensors
file of the same network. ``lenet`` is the shipped robust network.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from pwoa_plugin import load_sparse, save_sparse
from pwoa_plugin.method.oneshot import prune_once
from pwoa_plugin.models import load_checkpoint, make_model
from pwoa_plugin.runs.size import size_report

NETWORKS = ("lenet", "vgg16-cifar", "resnet50")


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = make_model(name, num_classes=1000 if name == "resnet50" else 10, in_channels=1 if name == "lenet" else 3)
    if name == "lenet":
        load_checkpoint(model, "shipped:robust_lenet_mnist")
    return model


def measure(name: str, compression: float, folder: Path) -> None:
    model = make(name)
    prune_once(model, 1 - 1 / compression, allocation="lamp")
    save_file(model.state_dict(), folder / "dense")
    dense = (folder / "dense").stat().st_size
    said = f"{name:12} {size_report(model).compression:5.1f}x  dense {dense:11,}"
    for values in ("float32", "float16"):
        started = time.perf_counter()
        save_sparse(model, folder / "sparse", values=values)
        saved = time.perf_counter()
        load_sparse(model, folder / "sparse")
        loaded = time.perf_counter()
        size = (folder / "sparse").stat().st_size
        said += f"  {values} {size:10,} (1/{dense / size:.1f}; {saved - started:.2f} s, {loaded - saved:.2f} s)"
    print(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--compressions", nargs="+", type=float, default=[16, 100])
    args = parser.parse_args()
    for name in args.networks:
        for compression in args.compressions:
            with tempfile.TemporaryDirectory() as folder:
                measure(name, compression, Path(folder))


if __name__ == "__main__":
    main()
