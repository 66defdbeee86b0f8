"""One schedule, driven by our trainer and by a loop of your own."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin._random import seeded
from pwoa_plugin.config import PwoAConfig
from pwoa_plugin.method.layout import lay_out_both
from pwoa_plugin.method.phases import ADMMConfig, ADMMPhase, GradualConfig, GradualPhase
from pwoa_plugin.method.schedule import Schedule
from pwoa_plugin.method.snapshot import StateError
from pwoa_plugin.method.targets import MaskTarget, mask_target
from pwoa_plugin.method.trainer import Trainer

Pair = tuple[Tensor, Tensor]


def made(model: nn.Module, admm: int, gradual: int, tuning: int) -> tuple[MaskTarget, Schedule]:
    target = mask_target(model, 0.8, allocation="lamp")
    target.begin()
    phases = [ADMMPhase(target, ADMMConfig(), admm), GradualPhase(target, GradualConfig(), gradual)]
    return target, Schedule(target, phases, tuning=tuning)


@pytest.mark.parametrize("lengths", [(6, 0), (0, 6), (3, 6), (0, 0)])
def test_a_loop_of_your_own_ends_with_the_bits_of_a_run(
    trained: nn.Module, images: Pair, lengths: tuple[int, int]
) -> None:
    admm, gradual = lengths
    fields: dict[str, Any] = {"admm": {"epochs": admm // 3}, "gradual": {"epochs": gradual // 3}}
    config = PwoAConfig(
        sparsity=0.8,
        train_loader=images,
        batch_size=64,
        epochs=5,
        eps=0.1,
        progress=False,
        schedule={"name": "constant"},
        **fields,
    )
    own = copy.deepcopy(trained)
    trainer = Trainer(trained, config)
    with seeded(0):
        trainer.fit()
    target, schedule = made(own, admm, gradual, 15 - admm - gradual)
    loss = Trainer(own, config).loss
    loss.prepare(own, images[0][:2])
    optimizer = torch.optim.Adam(own.parameters(), lr=config.optimizer.lr)
    lay_out_both(own, loss.teacher, images[0][:2])
    own.train()
    with seeded(0):
        batches = Trainer(copy.deepcopy(own), config).batches
        batches.first(2)
        schedule.start()
        for _ in range(5):
            for x, y in batches.epoch():
                optimizer.zero_grad()
                loss(own, x, y).backward()
                schedule.after_backward()
                optimizer.step()
                schedule.after_step()
                while schedule.due:
                    schedule.advance()
        schedule.finish()
    assert target.done
    assert schedule.residual == trainer.residual
    for name, mask in trainer.masks.items():
        assert torch.equal(mask, target.masks[name])
    for one, other in zip(own.parameters(), trained.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_training_that_ends_early_is_pruned_and_logged(trained: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    target, schedule = made(trained, 0, 10, 10)
    schedule.start()
    schedule.after_step()
    with caplog.at_level(logging.WARNING):
        schedule.finish()
    assert "training ended at step 1 of 10 of phase gradual; pruned to the full sparsity" in caplog.text
    kept = sum(int(mask.sum()) for mask in target.masks.values())
    assert kept == pytest.approx(0.2 * sum(mask.numel() for mask in target.masks.values()), abs=1)


def test_a_state_resumes_in_its_phase(trained: nn.Module) -> None:
    target, schedule = made(trained, 4, 4, 4)
    schedule.start()
    for _ in range(6):
        schedule.after_step()
        while schedule.due:
            schedule.advance()
    assert schedule.phase.name == "gradual"
    assert schedule.residual is not None
    again = made(copy.deepcopy(trained), 4, 4, 4)[1]
    again.load_state(schedule.state())
    assert (again.phase.name, again.phase.done, again.residual) == ("gradual", 2, schedule.residual)
    with pytest.raises(StateError, match="of a run of other phases"):
        made(trained, 4, 5, 3)[1].load_state(schedule.state())
    assert not target.done
