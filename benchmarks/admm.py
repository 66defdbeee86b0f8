"""ADMM's primal residual at the hard prune, by rho's range and whether the dual is rescaled.

    python -m benchmarks.admm

A small network on synthetic images, 70 % pruned, Adam; the residual is |W - Z| / |W|.
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin import PwoAConfig
from pwoa_plugin.method.trainer import Trainer


def images_of(n: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=random)
    x = torch.rand(n, 1, 8, 8, generator=random) * 0.4
    for i, label in enumerate(y.tolist()):
        x[i, 0, :, 2 * label : 2 * label + 3] += 0.5
    return x.clamp(0, 1), y


def trained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(96, 16), nn.ReLU(), nn.Linear(16, 3)),
    )
    x, y = images_of(512, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def residual(model: nn.Module, epochs: int, rho: float, rho_max: float, rescale: bool) -> float:
    admm = {"epochs": epochs, "rho": rho, "rho_max": rho_max, "rescale": rescale}
    config = PwoAConfig(
        sparsity=0.7,
        train_loader=images_of(192, 1),
        batch_size=64,
        epochs=epochs * 4 // 3,
        eps=0.1,
        optimizer={"lr": 5e-3},
        admm=admm,
    )
    torch.manual_seed(0)
    run = Trainer(copy.deepcopy(model), config)
    run.fit()
    assert run.residual is not None
    return run.residual


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    model = trained()
    print("ADMM steps  rho        as published  rescaled")
    for epochs in (6, 30, 100):
        for rho, rho_max in ((0.01, 1.0), (0.1, 1.0), (0.1, 10.0)):
            found = [residual(model, epochs, rho, rho_max, rescale) for rescale in (False, True)]
            print(f"{3 * epochs:10}  {rho:g} to {rho_max:<4g}  {found[0]:12.3f}  {found[1]:8.3f}", flush=True)


if __name__ == "__main__":
    main()
