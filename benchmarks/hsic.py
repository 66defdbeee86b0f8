"""HSIC, forward and backward: ours against the literal formula, in one run.

    python -m benchmarks.hsic

Batch 128, nHSIC of the layers with images and labels. Pairs of runs are interleaved, the ratio is of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pwoa_plugin.method.hsic import gaussian_kernel, hsic, linear_kernel, one_hot


def literal_kernel(x: Tensor, sigma: float = 5.0) -> Tensor:
    x = x.flatten(1)
    squares = x.square().sum(1, keepdim=True)
    distances = (squares - 2 * x @ x.t() + squares.t()).abs()
    return torch.exp(-distances / (2 * sigma**2 * x.shape[1]))


def literal_nhsic(a: Tensor, b: Tensor) -> Tensor:
    """As the authors write it: an inverse per kernel, both sides anew for each layer, autograd behind."""
    m = len(a)
    eye = torch.eye(m)
    centring = eye - 1 / m
    a, b = a @ centring, b @ centring
    r_a = a @ torch.linalg.inv(a + 1e-5 * m * eye)
    r_b = b @ torch.linalg.inv(b + 1e-5 * m * eye)
    return (r_a * r_b.t()).sum()


def milliseconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - started)


def compare(features: list[int], pairs: int) -> tuple[float, float]:
    torch.manual_seed(0)
    x, labels = torch.rand(128, 784), one_hot(torch.randint(0, 10, (128,)), 10)
    layers = [torch.randn(128, d).relu().requires_grad_() for d in features]

    def ours() -> None:
        values = hsic([gaussian_kernel(x), linear_kernel(labels)], layers).sum(1)
        torch.autograd.grad(2e-4 * values[0] - 5e-5 * values[1], layers)

    def literal() -> None:
        loss = torch.zeros(())
        for z in layers:
            loss = loss + 2e-4 * literal_nhsic(literal_kernel(x), literal_kernel(z))
            loss = loss - 5e-5 * literal_nhsic(labels @ labels.t(), literal_kernel(z))
        torch.autograd.grad(loss, layers)

    for _ in range(5):
        ours(), literal()
    times = [(milliseconds(ours), milliseconds(literal)) for _ in range(pairs)]
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100)
    args = parser.parse_args()
    cases = {f"one layer of {d}": [d] for d in (64, 256, 1024, 4096)} | {"small LeNet": [3136, 1568, 256]}
    cases |= {f"three layers of {d}": [d] * 3 for d in (64, 256, 1024)}
    cases["eight layers of 512"] = [512] * 8
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch 128, ms forward and backward")
    for name, features in cases.items():
        ours, literal = compare(features, args.pairs)
        print(f"{name:22} ours {ours:7.2f}  literal {literal:7.2f}  ratio {literal / ours:5.2f}")


if __name__ == "__main__":
    main()
