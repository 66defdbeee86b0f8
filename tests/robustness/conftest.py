"""Digits, and small real classifiers of them, trained once a session in about a second."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 0.1


@pytest.fixture(scope="session")
def eps() -> float:
    return EPS


@pytest.fixture(scope="session")
def digits() -> Callable[[int], tuple[Tensor, Tensor]]:
    """The digits below a number of classes: images ``(N, 1, 8, 8)`` in [0, 1] and labels ``(N,)``."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    labels = torch.tensor(classes, dtype=torch.int64)
    return lambda n_classes: (images[labels < n_classes], labels[labels < n_classes])


@pytest.fixture(scope="session")
def make_model(digits: Callable[[int], tuple[Tensor, Tensor]]) -> Callable[..., nn.Module]:
    """A fresh copy of a somewhat robust classifier, or an undefended one, in training mode but for its batch norm."""

    @cache
    def trained(n_classes: int, defended: bool = True) -> nn.Module:
        images, labels = digits(n_classes)
        images, labels = images[: len(images) // 2], labels[: len(labels) // 2]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Flatten(),
                nn.Dropout(0.2),
                nn.Linear(512, n_classes),
            )
            optimizer = torch.optim.Adam(model.parameters(), 3e-3)
            for _ in range(8):
                for chosen in torch.randperm(len(images)).split(64):
                    x = images[chosen].clone().requires_grad_()
                    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels[chosen]), x)
                    attacked = (x + 0.6 * EPS * defended * gradient.sign()).clamp(0, 1).detach()
                    optimizer.zero_grad()
                    F.cross_entropy(model(attacked), labels[chosen]).backward()
                    optimizer.step()
        model.zero_grad()
        model.train()
        model[1].eval()
        return model

    return lambda n_classes, **kind: copy.deepcopy(trained(n_classes, **kind))


@pytest.fixture
def model(make_model: Callable[[int], nn.Module]) -> nn.Module:
    """The classifier of all ten digits."""
    return make_model(10)


@pytest.fixture(scope="session")
def held_out(digits: Callable[[int], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """200 digits of ten classes that the classifier has not seen."""
    images, labels = digits(10)
    return images[-200:], labels[-200:]
