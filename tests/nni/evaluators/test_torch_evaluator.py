"""`make_evaluator` under real NNI pruners."""

from __future__ import annotations

import copy
from typing import Any

import nni
import pytest
import torch
from nni.compression import TorchEvaluator
from nni.compression.pruning import AGPPruner, LevelPruner, TaylorPruner
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, SequentialLR, StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pwoa_plugin import PwoADistiller, PwoALoss, PwoAPruner, make_evaluator
from pwoa_plugin.config import HSICConfig
from pwoa_plugin.errors import InputError

Pair = tuple[Tensor, Tensor]
PRUNED = [{"op_types": ["Conv2d", "Linear"], "target_names": ["weight"], "sparse_ratio": 0.5, "granularity": [1]}]


@pytest.fixture
def loader(images: Pair) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*images), batch_size=32, shuffle=True)


def bound(evaluator: TorchEvaluator, model: nn.Module) -> TorchEvaluator:
    evaluator.bind_model(model, {name: name for name, _ in model.named_parameters()})
    return evaluator


@pytest.mark.parametrize("given", ["class", "traced instance"])
def test_it_trains_as_a_loop_by_hand_does(trained: nn.Module, images: Pair, given: str) -> None:
    ordered = DataLoader(TensorDataset(*images), batch_size=32)
    by_hand = copy.deepcopy(trained)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9)
    scheduler = StepLR(optimizer, step_size=4, gamma=0.5)
    for _ in range(2):
        for x, y in ordered:
            optimizer.zero_grad()
            F.cross_entropy(by_hand(x), y).backward()
            optimizer.step()
            scheduler.step()
    if given == "class":
        options: dict[str, Any] = {"lr": 0.05, "optimizer_options": {"momentum": 0.9}}
    else:
        options = {"optimizer": nni.trace(torch.optim.SGD)(trained.parameters(), lr=0.05, momentum=0.9)}
    schedule = {"lr_scheduler": StepLR, "lr_scheduler_options": {"step_size": 4, "gamma": 0.5}}
    evaluator = make_evaluator(trained, ordered, **options, **schedule)
    assert isinstance(evaluator, TorchEvaluator)
    assert evaluator.steps_per_epoch == 6
    trained.eval()
    bound(evaluator, trained).train(None, 2)
    for mine, expected in zip(trained.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(mine, expected)
    assert not trained.training


def test_steps_end_within_an_epoch_and_go_on_over_several(trained: nn.Module, loader: DataLoader[Any]) -> None:
    seen: list[int] = []

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        seen.append(len(y))
        return F.cross_entropy(logits, y)

    evaluator = bound(make_evaluator(trained, loader, loss=loss), trained)
    for steps in (4, 15):
        seen.clear()
        evaluator.train(steps, None)
        assert len(seen) == steps
    seen.clear()
    evaluator.train(4, 3)  # whichever comes first
    assert len(seen) == 4
    with pytest.raises(ValueError, match="give max_steps or max_epochs"):
        evaluator.train(None, None)


def test_schedules_by_function_and_by_epoch(trained: nn.Module, loader: DataLoader[Any]) -> None:
    rates: list[float] = []

    def schedule(optimizer: torch.optim.Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, lambda epoch: 0.1**epoch)

    evaluator = make_evaluator(trained, loader, lr=1.0, lr_scheduler=schedule, lr_scheduler_interval="epoch")
    bound(evaluator, trained)
    optimizer = evaluator._optimizers[0]
    evaluator.patch_optimizer_step([lambda: rates.append(optimizer.param_groups[0]["lr"])], [])
    evaluator.train(None, 2)
    assert rates == pytest.approx([1.0] * 6 + [0.1] * 6)


def test_each_compress_makes_a_new_lr_scheduler(trained: nn.Module, loader: DataLoader[Any]) -> None:
    evaluator = make_evaluator(
        trained, loader, lr_scheduler=OneCycleLR, lr_scheduler_options={"max_lr": 0.01, "total_steps": 12}
    )
    pruner = PwoAPruner(trained, PRUNED, evaluator, eps=0.1, steps_per_epoch=6)
    for _ in range(2):
        pruner.compress(None, 2)
    with pytest.raises(ValueError, match=r"OneCycleLR\(total_steps=12\) ends before this training of 18 steps"):
        pruner.compress(None, 3)


def test_loaders_without_a_length(trained: nn.Module, images: Pair) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(zip(*images, strict=True))

    evaluator = make_evaluator(trained, DataLoader(Stream(), batch_size=32))
    assert evaluator.steps_per_epoch is None
    bound(evaluator, trained).train(None, 2)


def test_nnis_own_pruners_train_on_it(trained: nn.Module, loader: DataLoader[Any]) -> None:
    evaluator = make_evaluator(trained, loader, torch.optim.Adam, 1e-3)
    _, masks = TaylorPruner(trained, PRUNED, evaluator, training_steps=5).compress()
    assert masks["fc1"]["weight"].mean() == pytest.approx(0.5)


def test_weights_are_trained_under_a_pruner_that_wrapped_the_model_before_it_had_the_evaluator(
    trained: nn.Module, loader: DataLoader[Any]
) -> None:
    """``AGPPruner(LevelPruner(model, ...), evaluator=...)``: NNI's own TorchEvaluator then trains biases alone."""
    before = copy.deepcopy(trained)
    evaluator = make_evaluator(trained, loader, torch.optim.Adam, 1e-2)
    agp = AGPPruner(LevelPruner(trained, PRUNED), interval_steps=2, total_times=2, evaluator=evaluator)
    agp.compress(6, None)
    for name, targets in agp.get_masks().items():
        moved = trained.get_submodule(name)._nni_wrapper.weight - before.get_submodule(name).weight
        assert (moved * targets["weight"]).abs().sum() > 0


def test_unlabelled_batches(trained: nn.Module, images: Pair) -> None:
    loader = DataLoader(images[0], batch_size=32)
    evaluator = make_evaluator(trained, loader)
    with pytest.raises(ValueError, match="batches have no labels"):
        bound(evaluator, trained).train(3, None)
    evaluator.unbind_model()
    pruner = PwoAPruner(trained, PRUNED, evaluator, eps=0.1, hsic=HSICConfig(lambda_y=0), steps_per_epoch=6)
    pruner.compress(12, None)


def test_what_nni_could_not_rebuild_is_refused(trained: nn.Module, loader: DataLoader[Any]) -> None:
    sgd = nni.trace(torch.optim.SGD)
    other = nn.Linear(2, 2)
    wrapped = copy.deepcopy(trained)
    LevelPruner(wrapped, PRUNED)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)

    def sequential(optimizer: torch.optim.Optimizer) -> SequentialLR:
        return SequentialLR(optimizer, [StepLR(optimizer, 1), StepLR(optimizer, 1)], milestones=[3])

    def make(**options: Any) -> Any:
        return make_evaluator(trained, loader, **options)

    refusals = {
        "model is wrapped by a compressor": lambda: make_evaluator(wrapped, loader),
        "train_loader is empty": lambda: make_evaluator(trained, []),
        "this SGD is not traced": lambda: make(optimizer=optimizer),
        r"this SGD was built from named_parameters\(\)": lambda: make(
            optimizer=sgd(trained.named_parameters(), lr=0.1)
        ),
        "this SGD has 2 parameters, 2 of them not the model's": lambda: make(optimizer=sgd(other.parameters(), lr=0.1)),
        "this SGD has 2 parameters, 1 of them not the model's": lambda: make(
            optimizer=sgd([trained.fc1.weight, other.weight], lr=0.1)
        ),
        r"this SGD has 0 parameters, .* pass model\.parameters\(\)": lambda: make(
            optimizer=sgd([{"params": []}], lr=0.1)
        ),
        "cannot rebuild a SequentialLR; write the schedule as one LambdaLR": lambda: make(lr_scheduler=sequential),
        "lr_scheduler gives a NoneType": lambda: make(lr_scheduler=lambda optimizer: None),
        "lr_scheduler_interval='batch'": lambda: make(lr_scheduler_interval="batch"),
        "lr_scheduler_options go with lr_scheduler": lambda: make(lr_scheduler_options={"T_max": 3}),
    }
    for said, refused in refusals.items():
        with pytest.raises(ValueError, match=said) as caught:
            refused()
        assert "\n" not in str(caught.value)


class Dict(TensorDataset):
    """Batches as dicts with other names."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return {"img": x, "target": y}


def test_the_own_loss_costs_no_forward_where_it_counts_nothing(conv_net: Any, loader: DataLoader[Any]) -> None:
    def seen(**options: Any) -> int:
        model = copy.deepcopy(conv_net)
        evaluator = make_evaluator(model, loader, torch.optim.Adam, lr=1e-3)
        pruner = PwoAPruner(model, PRUNED, evaluator, eps=0.1, **options)
        before = int(model.bn1.num_batches_tracked)
        pruner.compress(max_steps=4, max_epochs=None)
        pruner.unwrap_model()
        assert evaluator.own_loss.counts
        return int(model.bn1.num_batches_tracked) - before

    assert seen() == 4
    assert seen(origin_loss_lambda=0.5) == 8


def test_the_own_loss_is_there_for_those_who_look_at_its_forward(trained: nn.Module, loader: DataLoader[Any]) -> None:
    calls: list[bool] = []

    def counted(logits: Tensor, y: Tensor) -> Tensor:
        calls.append(True)
        return F.cross_entropy(logits, y)

    def distilled(make: Any) -> int:
        calls.clear()
        evaluator = make_evaluator(trained, loader, torch.optim.Adam, lr=1e-3, loss=counted)
        pruner = make(evaluator)
        distiller = PwoADistiller.from_compressor(pruner, [], copy.deepcopy(trained), eps=0.1)
        distiller.compress(max_steps=6, max_epochs=None)
        distiller.unwrap_model()
        return len(calls)

    def by_weights(evaluator: TorchEvaluator) -> AGPPruner:
        return AGPPruner(LevelPruner(trained, PRUNED), interval_steps=1, total_times=2, evaluator=evaluator)

    def by_gradients(evaluator: TorchEvaluator) -> TaylorPruner:
        return TaylorPruner(trained, PRUNED, evaluator, training_steps=2)

    assert distilled(by_weights) == 0
    assert distilled(by_gradients) == 6


def test_take_batch_is_given_once(trained: nn.Module, images: Pair) -> None:
    loader = DataLoader(Dict(*images), batch_size=32)
    evaluator = make_evaluator(trained, loader, lr=1e-3, take_batch=lambda batch: (batch["img"], batch["target"]))
    pruner = PwoAPruner(trained, PRUNED, evaluator, eps="1/10")
    pruner.compress(max_steps=3, max_epochs=None)
    assert pruner.radius == pytest.approx(0.15)


def test_bad_batches_raise_our_messages(trained: nn.Module, images: Pair) -> None:
    x, y = images
    for data, said in (
        ((x, y + 5), "labels reach from 5 to 7, and the model has 3 classes"),
        (((255 * x).int(), y), "images are a tensor .* of torch.int32; give floats"),
    ):
        evaluator = make_evaluator(trained, DataLoader(TensorDataset(*data), batch_size=32), lr=1e-3)
        pruner = PwoAPruner(trained, PRUNED, evaluator, eps=0.1)
        with pytest.raises(ValueError, match=said):
            pruner.compress(max_steps=3, max_epochs=None)
        pruner.unwrap_model()
    ready = list(zip(x.split(32), y.split(32), strict=True))

    class Ready(Dataset[Any]):
        def __len__(self) -> int:
            return len(ready)

        def __getitem__(self, index: int) -> Any:
            return ready[index]

    for source in (Ready(), tuple(ready), tuple(x.split(32))):
        make_evaluator(trained, source)
    for source in (TensorDataset(*images), images):
        with pytest.raises(ValueError, match=r"of single images, or of all at once; put it into a DataLoader"):
            make_evaluator(trained, source)


def test_doubles_become_the_models_floats(trained: nn.Module, images: Pair) -> None:
    loader = DataLoader(TensorDataset(images[0].double(), images[1]), batch_size=32)
    evaluator = make_evaluator(trained, loader, lr=1e-3)
    PwoAPruner(trained, PRUNED, evaluator, eps=0.1).compress(max_steps=3, max_epochs=None)


@pytest.mark.parametrize("door", ["loss", "distiller", "pruner", "NNI's"])
def test_a_last_batch_of_one_image_under_batchnorm(door: str) -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    x, y, model, entries = torch.rand(9, 1, 4, 4), torch.arange(9) % 3, net(), [{"op_types": ["Linear"]}]
    evaluator = make_evaluator(model, DataLoader(TensorDataset(x, y), 4))
    pruned = [{**entries[0], "sparse_ratio": 0.5}]
    doors = {
        "loss": lambda: PwoALoss(net(), eps=0.1)(model, x[:1], y[:1]),
        "distiller": lambda: PwoADistiller(model, [], evaluator, net(), eps=0.1).compress(max_steps=3),
        "pruner": lambda: PwoAPruner(model, pruned, evaluator, eps=0.1).compress(max_steps=3),
        "NNI's": lambda: AGPPruner(LevelPruner(model, pruned), 1, 2, evaluator=evaluator).compress(3, None),
    }
    with pytest.raises(InputError, match=r"one image, .*BatchNorm.*drop_last=True"):
        doors[door]()


def test_an_error_after_the_first_batch_is_not_of_the_images(trained: nn.Module, loader: DataLoader[Any]) -> None:
    class Failing(nn.Module):
        def __init__(self, at: int) -> None:
            super().__init__()
            self.network, self.left = trained, at

        def forward(self, x: Tensor) -> Tensor:
            self.left -= 1
            if not self.left:
                raise RuntimeError("out of order")
            return self.network(x)  # type: ignore[no-any-return]

    for at, said in ((1, r"^the model does not take images \(1, 8, 8\) \(out of order\)"), (2, "^out of order$")):
        model = Failing(at)
        with pytest.raises(RuntimeError if at > 1 else InputError, match=said):
            bound(make_evaluator(model, loader, lr=0.1), model).train(None, 1)
