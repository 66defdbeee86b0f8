"""How many steps a pruning of few images needs: scikit-learn's digits, 1,300 images of 8 x 8.

    python -m benchmarks.few_images                       # the default, three seeds
    python -m benchmarks.few_images --epochs 12 48 96 116 144 --temperature 30 4
    python -m benchmarks.few_images --images 100 --batch 25 --epochs 375 --temperature 30

A small network is trained by PGD-10 and pruned at sparsity .9; each seed has a network, a split and a run of its own.
Printed: the share of the dense network's PGD-40 accuracy on the other 497 images that is left.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin import PwoAConfig, PwoAPruner, evaluate
from pwoa_plugin._random import seeded

EPS = 0.1
TRAINING = 1300
Pair = tuple[Tensor, Tensor]


def digits(seed: int) -> tuple[Pair, Pair]:
    """Images ``(N, 1, 8, 8)`` in [0, 1] with labels, 1,300 for training and 497 others."""
    found = load_digits()
    x, y = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:TRAINING], order[TRAINING:]
    return (x[train], y[train]), (x[test], y[test])


def robust_network(train: Pair, seed: int, width: int = 8, epochs: int = 40) -> nn.Module:
    """Two convolutions and two linear layers, adversarially trained by PGD-10."""
    with seeded(seed):
        model = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, 10)),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(epochs):
            for index in torch.randperm(len(train[0])).split(100):
                x, y = train[0][index], train[1][index]
                optimizer.zero_grad()
                F.cross_entropy(model(_attacked(model, x, y)), y).backward()
                optimizer.step()
    return model.eval()


def _attacked(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    at = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(10):
        at.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(at), y), at)
        at = (x + (at.detach() + EPS / 4 * gradient.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
    return at


def robustness(model: nn.Module, judge: Pair) -> float:
    """Accuracy under PGD-40."""
    report = evaluate(model, judge, eps=EPS, attacks=["PGD-40"], progress=False)
    return report.attacks["PGD-40"].accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs="+", default=[None], help="instead of the default")
    parser.add_argument("--temperature", type=float, nargs="+", default=[None], help="instead of the default")
    parser.add_argument("--images", type=int, default=TRAINING, help="the first so many to prune with")
    parser.add_argument("--batch", type=int, nargs="+", default=[100])
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--width", type=int, default=8, help="channels of the first convolution")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    made = []
    for seed in range(args.seeds):
        train, judge = digits(seed)
        model = robust_network(train, seed, args.width)
        made.append((train, judge, model, robustness(model, judge)))
        print(f"seed {seed}: dense PGD-40 {made[-1][3]:.3f}", flush=True)
    for epochs, temperature, batch in itertools.product(args.epochs, args.temperature, args.batch):
        kept = []
        for seed, (train, judge, dense, before) in enumerate(made):
            x, y = (part[: args.images] for part in train)
            fields: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
            if temperature is not None:
                fields["distillation"] = {"temperature": temperature}
            config = PwoAConfig(
                sparsity=args.sparsity,
                train_loader=(x, y),
                batch_size=batch,
                eps=EPS,
                seed=seed,
                progress=False,
                **fields,
            )
            model = copy.deepcopy(dense)
            started = time.perf_counter()
            PwoAPruner(model, config).compress()
            took = time.perf_counter() - started
            kept.append(robustness(model, judge) / before)
            print(f"  seed {seed}: kept {kept[-1]:.3f} in {took:.0f} s", flush=True)
        print(
            f"epochs {epochs or 'default'}, temperature {temperature or 'default'}, batches of {batch}: "
            f"kept {statistics.mean(kept):.3f} ({min(kept):.3f} to {max(kept):.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
