"""What PwoA's authors published, data set by data set (arXiv 2210.04311, section V, and their code)."""

from __future__ import annotations

from typing import Any

from .._section import ConfigError


def published_fields(dataset: str, epochs: int) -> dict[str, Any]:
    """The fields of `PwoAConfig.paper`, which says what is raised."""
    sgd = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
    cifar = {"admm": {**sgd, "lr": 0.01}, "optimizer": {**sgd, "lr": 0.005}, "schedule": {"name": "cosine"}}
    published: dict[str, dict[str, Any]] = {
        "mnist": {
            "hsic": {"lambda_x": 2e-4, "lambda_y": 5e-5},
            "alpha": 10.0,
            "admm": {"name": "adam", "lr": 5e-4},
            "optimizer": {"name": "adam", "lr": 1e-3},
            "schedule": {"name": "multistep", "milestones": (75, 90), "gamma": 0.1},
        },
        "cifar10": {"hsic": {"lambda_x": 2e-5, "lambda_y": 1e-4}, "alpha": 10.0, **cifar},
        "cifar100": {"hsic": {"lambda_x": 5e-7, "lambda_y": 2e-6}, "alpha": 100.0, **cifar},
    }
    if dataset not in published:
        raise ConfigError(f"paper({dataset!r}): the paper has {', '.join(published)}")
    of = published[dataset]
    if not isinstance(epochs, int) or epochs < 2:
        raise ConfigError(f"epochs={epochs!r}: give an integer; two phases need 2 epochs or more")
    admm_epochs = max(1, round(epochs / 3))
    if "milestones" in of["schedule"]:
        milestones = [max(1, round(at * (epochs - admm_epochs) / 100)) for at in of["schedule"]["milestones"]]
        of["schedule"] = of["schedule"] | {"milestones": tuple(milestones)}
    return {
        "allocation": "uniform",
        "epochs": epochs,
        "batch_size": 128,
        "optimizer": of["optimizer"],
        "schedule": of["schedule"],
        "distillation": {"alpha": of["alpha"], "temperature": 30.0, "feature_weight": 0.0},
        "perturbation": {"kind": "none"},
        "hsic": of["hsic"] | {"share": 1.0},
        "admm": {
            "epochs": admm_epochs,
            "interval": 3,
            "rho": 0.01,
            "growth": 1.35,
            "rho_max": 1.0,
            "rescale": False,
            "hsic": False,
            "optimizer": of["admm"],
            "schedule": {"name": "cycle", "factors": (1.0, 0.1, 0.01)},
        },
    }
