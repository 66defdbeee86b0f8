"""What exported files weigh, and how long they take beside the dense network in torch.

    python -m benchmarks.shipping [--rounds 15] [--batches 1 32]

The shipped LeNet and a ResNet-18 for CIFAR (random weights: time does not depend on them), dense and with channels
removed; each in torch, as .pt2, as ONNX in onnxruntime, and as ONNX in int8 (calibrated on random images: time does not
depend on them either). One thread each. In each round all variants run in turn, and a ratio is of two runs of one
round: the machine's load meets both alike. Reported are medians and quartiles of the ratios. One JSON file in --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_plugin import PwoAGroupPruner, export_onnx
from pwoa_plugin._files import write_text
from pwoa_plugin._versions import installed_versions
from pwoa_plugin.export import export_pt2, quantize_onnx
from pwoa_plugin.export.session import open_session
from pwoa_plugin.models import make_model, robust_lenet

SHAPES = {"lenet": (1, 28, 28), "resnet18-cifar": (3, 32, 32)}
LEAST_SECONDS = 0.02  # of one timing

Run = Callable[[Tensor], Any]


def network(name: str) -> nn.Module:
    if name == "lenet":
        return robust_lenet().eval()
    return make_model(name, num_classes=10, in_channels=3).eval()


def in_onnxruntime(path: Path) -> Run:
    session = open_session(path, threads=1)
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})


def variants(name: str, ratio: float, folder: Path) -> tuple[dict[str, Run], dict[str, int]]:
    """What is timed, and the bytes of the files."""
    x = torch.rand(4, *SHAPES[name])
    images = torch.rand(64, *SHAPES[name])
    dense, pruned = network(name), network(name)
    PwoAGroupPruner(pruned, x, pruning_ratio=ratio).step()
    pruned.eval()
    runs: dict[str, Run] = {}
    sizes: dict[str, int] = {}
    for kind, model in (("dense", dense), ("pruned", pruned)):
        parameters = sum(parameter.nbytes for parameter in (*model.parameters(), *model.buffers()))
        runs[f"{kind}, torch"], sizes[f"{kind}, torch"] = model, parameters
        export_pt2(model, folder / f"{name}-{kind}.pt2", x)
        export_onnx(model, folder / f"{name}-{kind}.onnx", x)
        quantize_onnx(folder / f"{name}-{kind}.onnx", folder / f"{name}-{kind}-int8.onnx", images)
        runs[f"{kind}, pt2"] = torch.export.load(folder / f"{name}-{kind}.pt2").module()
        runs[f"{kind}, onnxruntime"] = in_onnxruntime(folder / f"{name}-{kind}.onnx")
        runs[f"{kind}, onnxruntime int8"] = in_onnxruntime(folder / f"{name}-{kind}-int8.onnx")
        for label, file in (("pt2", ".pt2"), ("onnxruntime", ".onnx"), ("onnxruntime int8", "-int8.onnx")):
            sizes[f"{kind}, {label}"] = (folder / f"{name}-{kind}{file}").stat().st_size
    return runs, sizes


def seconds(run: Run, x: Tensor) -> float:
    """Of one call, over as many as take LEAST_SECONDS."""
    calls, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < LEAST_SECONDS or not calls:
        run(x)
        calls += 1
    return passed / calls


@torch.no_grad()
def ratios(runs: dict[str, Run], x: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """How many times as fast as ``dense, torch`` each variant is: median and quartiles over the rounds."""
    for run in runs.values():
        run(x)
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        order = list(runs) if number % 2 else list(reversed(runs))
        took = {name: seconds(runs[name], x) for name in order}
        for name in runs:
            found[name].append(took["dense, torch"] / took[name])
    made = {}
    for name, values in found.items():
        low, median, high = statistics.quantiles(values, n=4)
        made[name] = {"median": median, "low": low, "high": high}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--networks", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--ratio", type=float, default=0.5, help="of the channels removed, in each group")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result: dict[str, Any] = {name: value for name, value in vars(args).items() if name != "out"}
    result |= {"versions": installed_versions(), "found": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.networks:
            runs, sizes = variants(name, args.ratio, Path(folder))
            faster = {}
            for batch in args.batches:
                faster[str(batch)] = ratios(runs, torch.rand(batch, *SHAPES[name]), args.rounds)
                print(name, batch, {key: round(it["median"], 2) for key, it in faster[str(batch)].items()}, flush=True)
            result["found"][name] = {"bytes": sizes, "faster": faster}
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / "shipping.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
