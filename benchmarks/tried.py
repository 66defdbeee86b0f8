"""Ideas that are not in the package, tried on validation images: what they give, and that they were tried.

    python -m benchmarks.tried cifar10 --data DIR --idea toward --compression 16 --epochs 6 --batch-size 64 --set ...

``mixup``: pairs of training images mixed, each with a weight of its own (labels are not mixed: set
``hsic.lambda_y`` to 0). ``toward``: perturbations by the sign of the difference to another image of the batch, at a
random one of three scales, away from it in 3 of 10. ``gradients``: on every second batch the input gradient of the
difference of two logits (the teacher's first against its second, or against any) is drawn to the teacher's,
``--weight`` times the squared difference relative to its size; it is a gradient of perturbed natural images, and no
attack. ``none``: the default, or what ``--set`` makes of it. A line of JSON for each run: PGD on 1,000 validation
images, and the share given the teacher's class.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.methods import Loader
from benchmarks.robustness import parse_value
from benchmarks.subjects import SUBJECTS
from pwoa_plugin import PwoAConfig, PwoAPruner, evaluate
from pwoa_plugin.method.objective import PwoAObjective
from pwoa_plugin.method.perturbation import PERTURBATIONS, Perturbation

IDEAS = ("none", "mixup", "toward", "gradients")
SCALES = (1, 2, 4)
AWAY = 0.3


class Mixup(Loader):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in super().__iter__():
            share = torch.rand(len(x), 1, 1, 1)
            yield share * x + (1 - share) * x[torch.randperm(len(x))], y


class Toward(Perturbation):
    def direction(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        n, size = len(x), x.shape[2:]
        difference = x[torch.randperm(n, generator=generator)] - x
        difference = torch.where(torch.rand((n, 1, 1, 1), generator=generator) < AWAY, -difference, difference)
        scales = [F.interpolate(F.avg_pool2d(difference, s), size=size, mode="bilinear") for s in SCALES]
        which = torch.randint(len(SCALES), (n,), generator=generator)
        return torch.stack(scales)[which, torch.arange(n)].sign()


def with_gradients(weight: float) -> Any:
    """`PwoAObjective.forward` with the gradients' term on every second call."""
    forward, calls = PwoAObjective.forward, 0

    def objective(self: PwoAObjective, student: nn.Module, x: Tensor, y: Tensor | None = None) -> Tensor:
        nonlocal calls
        value, calls = forward(self, student, x, y), calls + 1
        if calls % 2:
            return value
        x = (self.perturbation(x) if self.perturbation else x).detach().requires_grad_()
        logits = self.teacher(x)
        first, second = logits.detach().topk(2).indices.split(1, dim=1)
        if torch.rand(()) < 0.5:
            second = torch.randint(logits.shape[1], second.shape)

        def margin(z: Tensor) -> Tensor:
            return (z.gather(1, first) - z.gather(1, second)).sum()

        (wanted,) = torch.autograd.grad(margin(logits), x)
        (got,) = torch.autograd.grad(margin(student(x)), x, create_graph=True)
        return value + weight * (got - wanted).square().mean() / wanted.square().mean()

    return objective


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--idea", choices=IDEAS, default="none")
    parser.add_argument("--weight", type=float, default=0.1, help="of the gradients' term")
    parser.add_argument("--compression", type=float, default=16)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=JSON", help='as distillation={"temperature":1}')
    args = parser.parse_args()
    subject = SUBJECTS[args.subject]
    fields = {name: parse_value(value) for name, _, value in (pair.partition("=") for pair in args.set)}
    loader = (Mixup if args.idea == "mixup" else Loader)(subject.training(args.data), args.batch_size, subject.augment)
    config = PwoAConfig(
        **{"sparsity": 1 - 1 / args.compression, "eps": subject.eps, "epochs": args.epochs, "progress": False} | fields,
        train_loader=loader,
    )
    if args.idea == "toward":
        PERTURBATIONS["toward"] = Toward
        config.perturbation = config.perturbation.model_copy(update={"kind": "toward"})
    if args.idea == "gradients":
        PwoAObjective.forward = with_gradients(args.weight)  # type: ignore[method-assign]
    model, teacher = subject.model().to(memory_format=torch.channels_last), subject.model()
    started = time.perf_counter()
    PwoAPruner(model, config).compress()
    seconds = time.perf_counter() - started
    x, y = (part[:1000] for part in subject.validation(args.data))
    report = evaluate(model, (x, y), eps=subject.eps, attacks=subject.judge.pgd, seed=0, progress=False)
    with torch.no_grad():
        agreement = (teacher(x).argmax(1) == model(x).argmax(1)).float().mean().item()
    result = {"clean": report.clean, subject.judge.pgd: report.attacks[subject.judge.pgd].accuracy}
    told = {name: value for name, value in vars(args).items() if name != "data"}
    print(json.dumps(result | {"agreement": agreement, "seconds": seconds} | told), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    main()
