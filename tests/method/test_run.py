"""What changes while a trainer runs."""

from __future__ import annotations

import torch
from torch import nn

from pwoa_plugin.method.batches import Batches
from pwoa_plugin.method.callback import Status
from pwoa_plugin.method.resuming import ResumableEpochs
from pwoa_plugin.method.run import Run
from pwoa_plugin.method.schedule import Schedule
from pwoa_plugin.method.targets import mask_target


def test_terms_are_summed_by_name(trained: nn.Module) -> None:
    images = torch.rand(4, 1, 8, 8)
    run = Run(
        schedule=Schedule(mask_target(trained, 0.5), []),
        epochs=ResumableEpochs(Batches(images, batch_size=2, device=torch.device("cpu"))),
        student=trained,
        images=images[:2],
        parameters=list(trained.parameters()),
        status=Status(phase="", epochs=1, steps=2),
        per_epoch=2,
        dtype=None,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    for value in (1.0, 2.5):
        run.add_terms({"distillation": torch.tensor(value), "hsic_x": torch.tensor(-value)})
    assert {name: float(total) for name, total in run.sums.items()} == {"distillation": 3.5, "hsic_x": -3.5}
