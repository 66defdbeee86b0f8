"""Callbacks of a run."""

from __future__ import annotations

from torch import Tensor, nn

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
