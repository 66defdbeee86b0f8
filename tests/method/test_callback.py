"""Callbacks of a run."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from pwoa_plugin import PwoAGroupPruner, PwoAPruner
from pwoa_plugin.config import PwoAConfig
from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.method.trainer import Trainer


class Spy(Callback):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.last: Status | None = None

    def on_start(self, status: Status) -> None:
        self.calls.append("start")

    def on_step(self, status: Status) -> None:
        self.calls.append("step")
        self.last = status

    def on_epoch_end(self, status: Status) -> None:
        self.calls.append("epoch")

    def on_end(self, status: Status | None) -> None:
        self.calls.append("end")


def test_callbacks_hear_of_everything(trained: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    spy = Spy()
    config = PwoAConfig(sparsity=0.8, train_loader=images, batch_size=64, epochs=4, eps=0.1, progress=False)
    Trainer(trained, config).fit([spy])
    assert spy.calls[0] == "start"
    assert spy.calls[-1] == "end"
    assert spy.calls.count("epoch") == 4
    assert spy.last is not None
    assert spy.last.step == spy.last.steps == 12


@pytest.mark.parametrize("callbacks", [None, 3, Spy(), [None], [Spy], lambda status: None])
@pytest.mark.parametrize(
    ("door", "granularity"),
    [
        (PwoAPruner, "unstructured"),
        (lambda model, config, callbacks: PwoAGroupPruner(model, config=config, callbacks=callbacks), "structured"),
    ],
)
def test_what_is_no_callback_is_refused_before_training(
    callbacks: Any, door: Any, granularity: str, trained: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    config = PwoAConfig(sparsity=0.5, train_loader=images, epochs=1, eps=0.1, granularity=granularity, progress=False)
    with pytest.raises(ValueError, match=r"^callbacks=.*: give a list of objects of subclasses of Callback$"):
        door(trained, config, callbacks=callbacks)
