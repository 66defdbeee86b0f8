"""Ideas that are not in the package, tried on validation images.

    python -m benchmarks.tried cifar10 --data DIR --idea toward --compression 16 --epochs 6 --batch-size 64 --set ...
    python -m benchmarks.tried cifar10 --data DIR --device cuda --deep 400 --set 'distillation={"gradient_weight":1}'

``mixup``: pairs of training images are mixed, each pair with its own weight (labels are not mixed: set
``hsic.lambda_y`` to 0). ``filters``: perturbations by the network's own filters: the sign of a random combination of
what ``--layer`` takes in, pulled back to the image; no loss, no label. ``toward``: perturbations by the sign of the
difference to another image of the batch, at a random one of three scales, away from it in 3 of 10.
``sensitivity``: layers keep what costs the least distillation loss on 512 perturbed images (temperature 1), measured
once as each layer alone loses its smallest weights (after Bai et al. 2024, arXiv 2410.15176).
``ema``: after the last cut a moving average of weights and BatchNorm's statistics (decay .995) is kept and taken at the
end. ``disagree``: images given another class than the teacher's count four times in distillation. ``bank``:
perturbations from 1,024 patterns drawn once, rolled and flipped at random.
``frozen-statistics``: BatchNorm normalises by the teacher's statistics, also in training. ``none``: the default, as
changed by ``--set``. Each run prints a line of JSON: PGD on 1,000 validation images, AutoAttack on the first ``--deep``
of them, and the share given the teacher's class.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.methods import Loader
from benchmarks.robustness import judged, parse_fields
from benchmarks.subjects import SUBJECTS, Judge
from pwoa_plugin import PwoAConfig, PwoAPruner
from pwoa_plugin._random import seeded
from pwoa_plugin.method import loss
from pwoa_plugin.method.allocation import ALLOCATIONS, Allocation, LayerGroups
from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.method.distillation import distillation_loss
from pwoa_plugin.method.hidden import read_hidden
from pwoa_plugin.method.layers import prunable_layers
from pwoa_plugin.method.perturbation import PERTURBATIONS, Patterns, Perturbation

IDEAS = ("none", "mixup", "toward", "frozen-statistics", "filters", "sensitivity", "ema", "disagree", "bank")
SCALES = (1, 2, 4)
AWAY = 0.3
DENSITIES = (1, 0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.0625, 0.045, 0.03, 0.02, 0.0125, 0.008, 0.004, 0.002)


class Mixup(Loader):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in super().__iter__():
            share = torch.rand(len(x), 1, 1, 1, device=x.device)
            yield share * x + (1 - share) * x[torch.randperm(len(x))], y


class Toward(Perturbation):
    def direction(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        n, size = len(x), x.shape[2:]
        difference = x[torch.randperm(n, generator=generator, device=x.device)] - x
        away = torch.rand((n, 1, 1, 1), generator=generator, device=x.device) < AWAY
        difference = torch.where(away, -difference, difference)
        scales = [F.interpolate(F.avg_pool2d(difference, s), size=size, mode="bilinear") for s in SCALES]
        which = torch.randint(len(SCALES), (n,), generator=generator, device=x.device)
        return torch.stack(scales)[which, torch.arange(n, device=x.device)].sign()


def through(teacher: nn.Module, layer: str) -> type[Perturbation]:
    """Perturbations that a random combination of a layer's inputs has as its gradient's sign."""

    class Filters(Perturbation):
        def direction(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
            with torch.enable_grad(), read_hidden(teacher, [layer]) as hidden:
                images = x.detach().requires_grad_()
                teacher(images)
                inside = hidden[layer]
                weights = Patterns(radius=1.0).direction(inside) if inside.dim() == 4 else torch.randn_like(inside)
                (gradient,) = torch.autograd.grad(inside, images, weights)
            return gradient.sign()

    return Filters


class Average(Callback):
    """Takes an exponential moving average of weights and statistics, begun after the last cut, at the run's end."""

    decay = 0.995

    def __init__(self, model: nn.Module) -> None:
        self.model, self.tensors, self.average = model, list[Tensor](), list[Tensor]()

    @torch.no_grad()
    def on_step(self, status: Status) -> None:
        if status.phase != "fine-tune":
            return
        if not self.average:
            self.tensors = [tensor for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
            self.average = [tensor.clone() for tensor in self.tensors]
        torch._foreach_lerp_(self.average, self.tensors, 1 - self.decay)

    @torch.no_grad()
    def on_end(self, status: Status | None) -> None:
        for tensor, average in zip(self.tensors, self.average, strict=True):
            tensor.copy_(average)


def by_disagreement(student: Tensor, teacher: Tensor, *, alpha: float = 10.0, temperature: float = 30.0) -> Tensor:
    """`distillation_loss`, in which images given another class than the teacher's count four times."""
    weights = 1 + 3 * (student.argmax(1) != teacher.argmax(1)).float()
    log_student, log_teacher = (F.log_softmax(logits / temperature, dim=1) for logits in (student, teacher))
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).mean(1)
    return alpha * temperature**2 * (weights * divergence).sum() / weights.sum()


class Bank(Perturbation):
    """`Patterns` drawn once, rolled and flipped; the signs of channels are as drawn."""

    patterns: Tensor

    def direction(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        chosen = self.patterns[torch.randint(len(self.patterns), (len(x),), generator=generator)]
        rolls = torch.randint(x.shape[3], (2,), generator=generator).tolist()
        chosen = chosen.roll(rolls, (2, 3))
        flips = torch.randint(2, (3,), generator=generator).tolist()
        chosen = chosen.flip([dim for dim, flip in zip((2, 3), flips, strict=False) if flip])
        return -chosen if flips[2] else chosen


class Measured(Allocation):
    """Densities that cost the least in all, by each layer's own curve.

    Args:
        curves: of each layer, loss at the densities of ``DENSITIES``.
    """

    def __init__(self, curves: list[list[float]]) -> None:
        self.curves = [np.maximum.accumulate(curve) for curve in curves]

    def ideal(self, layers: Sequence[LayerGroups], budget: float) -> list[float]:
        fine = np.geomspace(1, DENSITIES[-1], 200)
        costs = [np.interp(-np.log(fine), -np.log(DENSITIES), curve) for curve in self.curves]

        def chosen(price: float) -> list[float]:
            return [
                fine[np.argmin(cost + price * fine * layer.weights)] for cost, layer in zip(costs, layers, strict=True)
            ]

        low, high = 1e-12, 1e3  # the price of a weight
        for _ in range(80):
            middle = math.sqrt(low * high)
            spent = sum(density * layer.weights for density, layer in zip(chosen(middle), layers, strict=True))
            low, high = (middle, high) if spent > budget else (low, middle)
        return [density * layer.groups for density, layer in zip(chosen(high), layers, strict=True)]


@torch.no_grad()
def sensitivity(model: nn.Module, x: Tensor, radius: float, *, channels: bool = False) -> dict[str, list[float]]:
    """The curve of each layer of a network, by images ``x`` ``(N, C, H, W)`` perturbed by ``radius``.

    Args:
        channels: whether layers lose output channels, of the smallest norm, in place of single weights.
    """
    with seeded(0):
        x = Patterns(radius=radius)(x)
    wanted, curves = model(x), {}
    for name, layer in prunable_layers(model, None, ()).items():
        parts = [layer.get_parameter("weight")]
        if channels and isinstance(layer.bias, Tensor):
            parts.append(layer.bias)
        kept, curve = [part.clone() for part in parts], []
        size = kept[0].flatten(1).norm(dim=1) if channels else kept[0].abs().flatten()
        order = size.argsort(descending=True)
        for density in DENSITIES:
            mask = torch.zeros_like(size)
            mask[order[: max(1, round(density * len(order)))]] = 1
            for part, whole in zip(parts, kept, strict=True):
                by_row = mask.view(-1, *[1] * (part.dim() - 1)) if channels else mask.view_as(part)
                part.copy_(whole * by_row)
            curve.append(distillation_loss(model(x), wanted, temperature=1.0).item())
            for part, whole in zip(parts, kept, strict=True):
                part.copy_(whole)
        curves[name] = curve
    return curves


def freeze_statistics(model: nn.Module) -> None:
    def freeze(module: nn.Module, _: object) -> None:
        module.eval()

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(freeze)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--idea", choices=IDEAS, default="none")
    parser.add_argument("--layer", help="of --idea filters")
    parser.add_argument("--compression", type=float, default=16)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=JSON", help='as distillation={"temperature":1}')
    parser.add_argument("--deep", type=int, default=0, help="images for AutoAttack; none unless given")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    subject = SUBJECTS[args.subject]
    images, labels = (part.to(args.device) for part in subject.training(args.data))
    loader = (Mixup if args.idea == "mixup" else Loader)((images, labels), args.batch_size, subject.augment)
    config = PwoAConfig(
        **{"sparsity": 1 - 1 / args.compression, "eps": subject.eps, "epochs": args.epochs, "progress": False}
        | parse_fields(args.set),
        train_loader=loader,
    )
    if args.idea == "toward":
        PERTURBATIONS["toward"] = Toward
        config.perturbation = config.perturbation.model_copy(update={"kind": "toward"})
    model = subject.model().to(args.device, memory_format=torch.channels_last)
    teacher = subject.model().to(args.device)
    if args.idea == "filters":
        PERTURBATIONS["filters"] = through(teacher.eval().requires_grad_(False), args.layer)
        config.perturbation = config.perturbation.model_copy(update={"kind": "filters"})
    if args.idea == "sensitivity":
        ALLOCATIONS["sensitivity"] = Measured([*sensitivity(teacher.eval(), images[:512], 1.5 * subject.eps).values()])
        config.allocation = "sensitivity"
    if args.idea == "frozen-statistics":
        freeze_statistics(model)
    if args.idea == "bank":
        with seeded(0):
            Bank.patterns = Patterns(radius=1.0).direction(images[:1].expand(1024, -1, -1, -1))
        PERTURBATIONS["bank"] = Bank
        config.perturbation = config.perturbation.model_copy(update={"kind": "bank"})
    if args.idea == "disagree":
        loss.distillation_loss = by_disagreement
    callbacks = [Average(model)] if args.idea == "ema" else []
    started = time.perf_counter()
    PwoAPruner(model, config, callbacks=callbacks).compress()
    seconds = time.perf_counter() - started
    judge = Judge(subject.judge.pgd, 1000, args.deep)
    split = subject.validation(args.data)
    result = judged(model, split, subject.eps, judge, deep=args.deep > 0, seed=0)
    x = split[0][:1000].to(args.device)
    with torch.no_grad():
        agreement = (teacher(x).argmax(1) == model(x).argmax(1)).float().mean().item()
    told = {name: value for name, value in vars(args).items() if name != "data"}
    print(json.dumps(result | {"agreement": agreement, "seconds": seconds} | told), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    main()
