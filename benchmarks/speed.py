"""What a step of PwoA costs over a plain cross-entropy step, in one run.

    python -m benchmarks.speed [--networks lenet lenet3 cifar10 resnet18-cifar] [--device cuda] [--compile]

``cifar10`` is the study's own network. All steps have the same network, optimizer (Adam) and batch of 128; they are
interleaved. The ratio is of medians. ``mean`` is of means without the slowest tenth. ``expected`` is for steps whose
terms are drawn: the medians of the four combinations of HSIC and hidden features, each by its chance. Student forward
and backward plus the teacher's forward alone would be 1.33.

``published``: the paper's objective, without perturbation and hidden features. ``fine-tune``: the default's under
masks, but with HSIC and hidden features in every step. ``no-hsic``: the same without HSIC. ``quarter``: the default,
with both in a random quarter of the steps. ``gradual``: ``fine-tune`` with its share of a cut (every nineteenth step:
12 epochs of 20,000 images). ``admm``: ``fine-tune`` with ADMM's gradient, and its dual update every eleventh step.
``adversarial``: ``fine-tune`` with one-step adversarial examples. ``alone``: our run on one-step examples of the
teacher's classes, without other terms. ``n-fgsm``, ``pgd-7``: a step of adversarial fine-tuning, by one step and by
seven. Peak memory is what a step needs beyond what was in use before: the allocator's on a GPU, the largest resident
size of a separate process on the CPU.

``--compile`` adds ``-compiled`` kinds, whose networks go through ``torch.compile``, on a GPU as CUDA graphs: ours by
``compile=True``, the others' forward and backward and their attacks. Ours with ``adversarial`` makes its examples
uncompiled. ``of compiled plain`` is the ratio of medians to `plain-compiled`. Their memory is measured on a GPU only.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.methods import cross_entropy, pgd7, single_step
from benchmarks.subjects import SUBJECTS
from pwoa_plugin import PwoAConfig
from pwoa_plugin._random import happens
from pwoa_plugin.method.admm import ADMM
from pwoa_plugin.method.compiled import CompiledForward, begin_step, graph_of
from pwoa_plugin.method.trainer import Trainer
from pwoa_plugin.models import make_model

BATCH = 128
SHAPES = {
    "lenet": (1, 28, 28),
    "lenet3": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "resnet18-cifar": (3, 32, 32),
    "wrn-34-10": (3, 32, 32),
}
KINDS = ("plain", "published", "fine-tune", "no-hsic", "quarter", "admm", "adversarial", "alone", "n-fgsm", "pgd-7")
SINGLE = {"plain": cross_entropy, "pgd-7": pgd7(0.03), "n-fgsm": single_step(0.03, noise=2, step=1, project=False)}
SUFFIX = "-compiled"
COMPILED = ("plain", "fine-tune", "quarter", "adversarial", "n-fgsm", "pgd-7")
WARM_UP = 12  # of compiled steps: all of their graphs are made, and recorded
CUT, CUTS_APART = "gradual cut", 19
DRAWN = 16  # steps of `quarter` in which every combination comes as often as its chance
Step = Callable[[], None]


def images(network: str, device: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(BATCH, *SHAPES[network], device=device), torch.randint(0, 10, (BATCH,), device=device)


def draws(step: int) -> tuple[bool, bool]:
    """Whether HSIC and hidden features are in a step of ``quarter``."""
    return happens(0.25, 0, step, 0), happens(0.25, 0, step, 1)


@functools.cache
def steps_in_proportion() -> list[int]:
    """``DRAWN`` numbers of steps: 9 have neither term, 3 and 3 have one, 1 has both."""
    left, chosen, numbers = {(0, 0): 9, (1, 0): 3, (0, 1): 3, (1, 1): 1}, list[int](), itertools.count()
    while len(chosen) < DRAWN:
        step = next(numbers)
        if left[draws(step)]:
            left[draws(step)] -= 1
            chosen.append(step)
    return chosen


def expected(times: list[float], first: int) -> float:
    """Milliseconds of a step of ``quarter``, from those of successive steps, of which ``first`` came before."""
    groups: dict[tuple[bool, bool], list[float]] = {}
    for position, value in enumerate(times, first):
        groups.setdefault(draws(steps_in_proportion()[position % DRAWN]), []).append(value)
    return sum(
        statistics.median(values) * (1 / 4 if with_hsic else 3 / 4) * (1 / 4 if with_features else 3 / 4)
        for (with_hsic, with_features), values in groups.items()
    )


def make_network(name: str) -> nn.Module:
    """Not trained; a subject of the study, or the package's own by its name."""
    if name in SUBJECTS:
        return SUBJECTS[name].network()
    return make_model(name, num_classes=10, in_channels=SHAPES[name][0])


class Compiled(nn.Module):
    """A network by two graphs: one for training, and one for attacks, whose weights get no gradient."""

    def __init__(self, network: nn.Module, device: str) -> None:
        super().__init__()
        self.network = network
        self.graphs = [graph_of(inside, (), torch.device(device)) for inside in (network, WithoutGradients(network))]

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.graphs[x.requires_grad](x)[0]
        return output


class WithoutGradients(nn.Module):
    """A network whose parameters take part as constants."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        constants = {name: parameter.detach() for name, parameter in self.network.named_parameters()}
        output: Tensor = torch.func.functional_call(self.network, constants, (x,))
        return output


def make_step(kind: str, network: str, device: str) -> Step:
    """One training step, optimizer included, as a function of nothing."""
    kind, compiled = kind.removesuffix(SUFFIX), kind.endswith(SUFFIX)
    x, y = images(network, device)
    model = make_network(network).to(device)
    if device == "cpu":
        x = x.contiguous(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    if kind in SINGLE:
        loss, called = SINGLE[kind], Compiled(model, device) if compiled else model

        def step() -> None:
            begin_step(x.device)
            loss(called, x, y).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)  # here, so that no other step finds a CUDA graph's gradients

        return step
    fields: dict[str, Any] = {"sparsity": 0.9, "train_loader": (x, y), "eps": 0.03}
    if kind != "quarter":
        fields |= {"hsic": {"share": 1.0}, "distillation": {"feature_share": 1.0}}
    if kind == "adversarial":
        fields["adversarial"] = {}
    if kind == "alone":
        fields |= {"adversarial": {"classes": "teacher"}, "distillation": {"alpha": 0.0, "feature_weight": 0.0}}
    if kind in ("no-hsic", "alone"):
        fields["hsic"] = {"lambda_x": 0, "lambda_y": 0}
    common = {name: fields[name] for name in ("sparsity", "train_loader", "eps")}
    config = PwoAConfig.paper("mnist", **common) if kind == "published" else PwoAConfig(**fields)
    run = Trainer(model, config)
    if device == "cpu":
        run.loss.teacher.to(memory_format=torch.channels_last)
    run.loss.prepare(model, x)
    if compiled:
        run.loss.network_forward = CompiledForward()
    weights, masks = run.target.weights_and_projections()
    admm = ADMM(weights, masks, rho=0.1, growth=1.0, rho_max=0.1) if kind == "admm" else None
    if admm is None:
        run.target.cut(1.0)
    done = 0

    def pwoa() -> None:
        nonlocal done
        run.loss.step = steps_in_proportion()[done % DRAWN]
        begin_step(x.device)
        run.loss.of_checked(model, x, y).backward()
        if admm is not None:
            admm.add_gradient()
        optimizer.step()
        if admm is None:
            run.target.hold()
        elif done % 11 == 0:
            admm.dual_update()
        optimizer.zero_grad(set_to_none=True)
        done += 1

    return pwoa


def milliseconds(step: Step, device: str) -> float:
    started = time.perf_counter()
    step()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - started)


def parts(network: str, pairs: int, device: str) -> dict[str, float]:
    """ADMM's penalty by hand and by autograd, its projection, and a cut, in milliseconds."""
    x, y = images(network, device)
    model = make_network(network).to(device)
    run = Trainer(model, PwoAConfig(sparsity=0.9, train_loader=(x, y)))
    weights, masks = run.target.weights_and_projections()
    admm = ADMM(weights, masks, rho=0.1, growth=1.0, rho_max=0.1)
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    steps: dict[str, Step] = {
        "penalty, by hand": admm.add_gradient,
        "penalty, by autograd": lambda: admm.penalty().backward(),
        "dual update": admm.dual_update,
        CUT: lambda: run.target.cut(0.5),
    }
    return {
        name: statistics.median(milliseconds(step, device) for _ in range(max(3, pairs // 4)))
        for name, step in steps.items()
    }


def trimmed_mean(values: list[float]) -> float:
    """Without the slowest tenth, which the machine's other work makes."""
    return statistics.fmean(sorted(values)[: -(len(values) // 10) or None])


def peak(kind: str, network: str, device: str) -> float:
    """MiB that two steps need, their networks included, beyond what was in use before."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        torch.set_num_threads(1)
    before = torch.cuda.memory_allocated(device) / 2**20 if on_gpu else resident("VmRSS")
    step = make_step(kind, network, device)
    for _ in range(2):
        step()
    return (torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else resident("VmHWM")) - before


def resident(name: str) -> float:
    """MiB of this process, now (``VmRSS``) or at most (``VmHWM``); Linux."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=SHAPES, default=["lenet", "lenet3", "resnet18-cifar"])
    parser.add_argument("--pairs", type=int, default=40, help="of the LeNets; a quarter of it for larger networks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--compile", action="store_true", help=f"the kinds {', '.join(COMPILED)} compiled, too")
    parser.add_argument("--no-memory", action="store_true")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, batch {BATCH}")
    context = multiprocessing.get_context("spawn")
    kinds = [kind for kind in KINDS if kind == "plain" or kind in args.kinds]
    kinds += [kind + SUFFIX for kind in COMPILED if args.compile and kind in kinds]
    for network in args.networks:
        torch._dynamo.reset()  # the graphs of the network before
        pairs = args.pairs if network.startswith("lenet") else max(4, args.pairs // 4)
        pairs = max(pairs, DRAWN) if "quarter" in kinds else pairs
        steps = {kind: make_step(kind, network, args.device) for kind in kinds}
        warm = {kind: WARM_UP if kind.endswith(SUFFIX) else 2 for kind in kinds}
        for kind, step in steps.items():
            for _ in range(warm[kind]):
                step()
        rounds = [{kind: milliseconds(step, args.device) for kind, step in steps.items()} for _ in range(pairs)]
        memory = {}
        for kind in kinds:
            if args.no_memory or (kind.endswith(SUFFIX) and args.device == "cpu"):
                continue
            if args.device.startswith("cuda"):  # counts by itself, and a process of its own would be most of the time
                memory[kind] = peak(kind, network, args.device)
                continue
            with context.Pool(1) as pool:
                memory[kind] = pool.apply(peak, (kind, network, args.device))
        medians = {kind: statistics.median(times[kind] for times in rounds) for kind in kinds}
        means = {kind: trimmed_mean([times[kind] for times in rounds]) for kind in kinds}
        plain = medians["plain"]
        of_drawn = {
            kind: expected([times[kind] for times in rounds], warm[kind])
            for kind in kinds
            if kind.startswith("quarter")
        }
        of_parts = parts(network, pairs, args.device)
        for kind, median in medians.items():
            print(
                f"{network:15} {kind:20} {median:8.1f} ms  ratio {median / plain:4.2f}  "
                f"mean {means[kind] / means['plain']:4.2f}"
                + (f"  expected {of_drawn[kind] / plain:.2f}" if kind in of_drawn else "")
                + (f"  {memory[kind]:6.0f} MiB" if kind in memory else "")
                + (f"  of compiled plain {median / medians['plain' + SUFFIX]:.2f}" if kind.endswith(SUFFIX) else "")
            )
        if "fine-tune" in kinds:
            gradual = medians["fine-tune"] + of_parts[CUT] / CUTS_APART
            print(f"{network:15} {'gradual':20} {gradual:8.1f} ms  ratio {gradual / plain:4.2f}")
        if {"fine-tune", "pgd-7"} <= {*kinds}:
            print(f"{network:15} pgd-7 over fine-tune {medians['pgd-7'] / medians['fine-tune']:.2f}")
        for name, value in of_parts.items():
            print(f"{network:15} {name:22} {value:8.2f} ms")


if __name__ == "__main__":
    main()
