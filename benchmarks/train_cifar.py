"""Train the study's CIFAR-10 networks to be robust: fast adversarial training.

    python -m benchmarks.train_cifar [cifar10-resnet18 --device cuda] --data DIR [--epochs 36]

One attack step for each training step (N-FGSM: de Jorge et al., NeurIPS 2022: noise of twice eps, not clipped, then a
step of eps). At 8/255 it does not overfit to that step, as FGSM from a random start does. As a guard, PGD-10 runs on
validation images after every epoch, and the run ends if that accuracy falls more than 5 points below its best. SGD, one
cycle of the learning rate. The weights are a moving average; BatchNorm's statistics are measured again on that attack's
images. State is saved after every epoch, and a stopped run resumes.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.subjects import SUBJECTS
from pwoa_plugin import evaluate
from pwoa_plugin._files import write_text
from pwoa_plugin._random import random_state, set_random_state
from pwoa_plugin.data.augment import crop_and_flip, draw_crops_and_flips

BATCH = 128
WORST_FALL = 0.05


def n_fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    noisy = (x + 2 * eps * (2 * torch.rand_like(x) - 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(noisy), y), noisy)
    return (noisy.detach() + eps * gradient.sign()).clamp(0, 1)


def with_own_statistics(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> nn.Module:
    """A copy whose BatchNorm statistics are the plain mean over adversarial images, as in training.

    The images are made with the statistics that the model has, for averaged weights the initial ones, and are weaker
    than the copy's own would be (PGD-10 is the same to .1 points by statistics over either).
    """
    adversarial = torch.cat([n_fgsm(model.eval(), a, b, eps) for a, b in zip(x.split(500), y.split(500), strict=True)])
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for batch in adversarial.split(500):
            model(batch)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", nargs="?", choices=("cifar10", "cifar10-resnet18"), default="cifar10")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--epochs", type=int, default=36)
    parser.add_argument("--lr", type=float, default=0.2, help="at its peak")
    parser.add_argument("--out", type=Path, help="the subject's own checkpoint unless given")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    subject = SUBJECTS[args.subject]
    args.out = args.out or Path(subject.checkpoint)
    x, y = (part.to(args.device) for part in subject.training(args.data))
    judge = tuple(part[:500] for part in subject.validation(args.data))
    torch.manual_seed(0)
    model = subject.network().to(args.device, memory_format=torch.channels_last)
    average = copy.deepcopy(model)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0.0}], lr=args.lr, momentum=0.9
    )
    steps = args.epochs * (len(x) // BATCH)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.25)
    parts: dict[str, Any] = {"model": model, "average": average, "optimizer": optimizer, "scheduler": scheduler}
    history: list[dict[str, Any]] = []
    saved = args.out.with_suffix(".training.pt")
    if saved.exists():
        state = torch.load(saved, weights_only=True, map_location="cpu")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        history = state["history"]
        set_random_state(state["random"])
    for epoch in range(len(history), args.epochs):
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(epoch)
        total = 0.0
        for index in torch.randperm(len(x), generator=generator)[: len(x) // BATCH * BATCH].split(BATCH):
            images = crop_and_flip(x[index], *draw_crops_and_flips(BATCH, generator))
            images = images.contiguous(memory_format=torch.channels_last)
            model.train()
            loss = F.cross_entropy(model(n_fgsm(model, images, y[index], subject.eps)), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(value, 1 / min(500, 10 + scheduler.last_epoch))
            total += loss.item()
        seconds = time.perf_counter() - started
        network = with_own_statistics(average, x[:2000], y[:2000], subject.eps)
        report = evaluate(network, judge, eps=subject.eps, attacks="PGD-10", seed=0, progress=False)
        robust = report.attacks["PGD-10"].accuracy
        history.append({"loss": total / (len(x) // BATCH), "clean": report.clean, "PGD-10": robust, "seconds": seconds})
        print(epoch + 1, json.dumps(history[-1]), flush=True)
        if not math.isfinite(total) or robust < max(entry["PGD-10"] for entry in history) - WORST_FALL:
            raise SystemExit("robustness fell: catastrophic overfitting, or a learning rate that is too high")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"history": history, "random": random_state()}, saved.with_suffix(".tmp"))
        os.replace(saved.with_suffix(".tmp"), saved)
        save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, args.out)
        write_text(args.out.with_suffix(".json"), json.dumps(history, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    main()
