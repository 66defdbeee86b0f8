"""The life of a run, on a real small network."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin._random import seeded
from pwoa_plugin.config import OptimizerConfig, PwoAConfig, ScheduleConfig
from pwoa_plugin.errors import TrainingError
from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.method.distillation import gradient_loss
from pwoa_plugin.method.loss import PwoALoss
from pwoa_plugin.method.snapshot import Snapshot, StateError
from pwoa_plugin.method.sparsity import make_sparsity_set
from pwoa_plugin.method.trainer import Trainer

Pair = tuple[Tensor, Tensor]


def config(images: Pair, **fields: Any) -> PwoAConfig:
    values: dict[str, Any] = {
        "sparsity": 0.8,
        "train_loader": images,
        "batch_size": 64,
        "epochs": 4,
        "eps": 0.1,
        "optimizer": {"lr": 5e-3},
        "progress": False,
    }
    return PwoAConfig(**values | fields)


def run(model: nn.Module, settings: PwoAConfig, callbacks: Any = ()) -> Trainer:
    torch.manual_seed(settings.seed)
    trainer = Trainer(model, settings)
    trainer.fit(callbacks)
    return trainer


def accuracy(model: nn.Module, images: Pair) -> float:
    return (model(images[0]).argmax(1) == images[1]).float().mean().item()


def test_parts_of_a_batch_have_the_same_terms(
    trained: nn.Module, images: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[frozenset[str]] = []
    of_checked = PwoALoss.of_checked

    def recorded(loss: PwoALoss, *args: Any) -> Tensor:
        value = of_checked(loss, *args)
        parts.append(frozenset(name for name in ("features", "hsic_x") if loss.terms[name]))
        return value

    monkeypatch.setattr(PwoALoss, "of_checked", recorded)
    run(trained, config(images, accumulate=2))
    assert len(parts) == 24
    assert parts[::2] == parts[1::2]
    assert set(parts) == {frozenset(), frozenset({"features"}), frozenset({"hsic_x"})}


@pytest.mark.parametrize("granularity", ["unstructured", "filter", "channel", "column", "block:2x2"])
@pytest.mark.parametrize(("admm", "gradual"), [(0, 0), (2, 0), (0, 2), (1, 2), (0, 4)])
def test_weights_are_zero_exactly_where_the_masks_are(
    trained: nn.Module, images: Pair, granularity: str, admm: int, gradual: int
) -> None:
    phases = {"admm": {"epochs": admm}, "gradual": {"epochs": gradual}}
    done = run(trained, config(images, granularity=granularity, sparsity=0.5, exclude=["fc2"], **phases))
    assert list(done.masks) == ["conv", "fc1"]
    kept = 0
    for name, mask in done.masks.items():
        weight = trained.get_submodule(name).weight
        assert torch.equal(weight != 0, mask)
        kept += int(mask.sum())
        assert int(make_sparsity_set(granularity).scores(mask.double()).gt(0).sum()) == done.allocation[name].keep
    total = sum(mask.numel() for mask in done.masks.values())
    assert kept / total == pytest.approx(0.5, abs=96 / total)
    assert trained.fc2.weight.ne(0).all()
    assert (done.residual is not None) == (admm > 0)
    phases_run = [entry["phase"] for entry in done.history]
    assert phases_run == ["admm"] * admm + ["gradual"] * gradual + ["fine-tune"] * (4 - admm - gradual)


def test_it_learns_what_the_teacher_knows(trained: nn.Module, images: Pair) -> None:
    teacher = copy.deepcopy(trained)
    before = list(trained.parameters())
    one_shot = copy.deepcopy(trained)
    settings = config(images, sparsity=0.9, epochs=60)
    done = run(trained, settings)
    for name, layer in done.allocation.items():
        weight = one_shot.get_submodule(name).weight
        with torch.no_grad():
            weight.mul_(make_sparsity_set("unstructured").mask(weight, layer.keep))
    x = images[0]
    assert all(a is b for a, b in zip(before, trained.parameters(), strict=True))
    assert (trained(x) - teacher(x)).square().mean() < 0.3 * (one_shot(x) - teacher(x)).square().mean()
    assert accuracy(trained, images) > 0.9
    assert [entry["phase"] for entry in done.history] == ["gradual"] * 30 + ["fine-tune"] * 30
    assert set(done.history[-1]) >= {"distillation", "features", "hsic_x", "hsic_y", "loss", "lr"}


class Sparsity(Callback):
    """The share of weights that are 0, after every step."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.found = model, list[float]()

    def on_step(self, status: Status) -> None:
        weights = [p for p in self.model.parameters() if p.dim() > 1]
        self.found.append(sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights))


def test_gradual_pruning_cuts_more_each_time_and_allocates_anew(trained: nn.Module, images: Pair) -> None:
    sparsity = Sparsity(trained)
    trainer = Trainer(trained, config(images, epochs=8, gradual={"epochs": 6}))
    of_dense = trainer.allocation
    with seeded(0):
        trainer.fit([sparsity])
    # 18 steps are few for 48 cuts: one at every step.
    assert sparsity.found[:17] == pytest.approx([0.8 * (1 - (1 - n / 18) ** 3) for n in range(1, 18)], abs=1 / 1000)
    assert sparsity.found[18:] == [pytest.approx(0.8, abs=1 / 1000)] * 6
    assert {n: x.keep for n, x in trainer.allocation.items()} != {n: x.keep for n, x in of_dense.items()}
    assert sum(x.keep for x in trainer.allocation.values()) == sum(x.keep for x in of_dense.values())


def test_between_two_cuts_what_was_cut_stays_so(trained: nn.Module, images: Pair) -> None:
    sparsity = Sparsity(trained)
    run(trained, config(images, batch_size=4, epochs=2, gradual={"epochs": 1, "interval": 3}), [sparsity])
    steps = len(sparsity.found) // 2
    assert steps >= 48
    assert sparsity.found[:2] == [0, 0]
    for n in range(3, steps - 3, 3):
        assert sparsity.found[n - 1] == sparsity.found[n] == sparsity.found[n + 1] < sparsity.found[n + 2]


def test_admm_brings_the_weights_near_the_set(trained: nn.Module, images: Pair) -> None:
    done = run(trained, config(images, sparsity=0.7, epochs=40, admm={"epochs": 30}))
    assert done.residual is not None
    assert done.residual < 0.1


def test_bit_equal_under_a_seed(trained: nn.Module, images: Pair) -> None:
    other = copy.deepcopy(trained)
    first, second = run(trained, config(images)), run(other, config(images))
    for name in first.masks:
        assert torch.equal(first.masks[name], second.masks[name])
    for a, b in zip(trained.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_dead_filters_emit_nothing_and_can_be_removed(images: Pair) -> None:
    torch.manual_seed(0)
    model, colour = BatchNormNet(), (images[0].expand(-1, 3, -1, -1), images[1])
    done = run(model, config(colour, granularity="filter", sparsity=0.5, exclude=["conv2", "head"], epochs=8))
    for layer, norm in (("conv1", "bn1"), ("fc", "bn2")):
        dead = ~done.masks[layer].flatten(1).any(1)
        assert dead.any()
        for name in (f"{layer}.bias", f"{norm}.weight", f"{norm}.bias"):
            assert model.get_parameter(name)[dead].eq(0).all()
            assert model.get_parameter(name)[~dead].ne(0).all()
    assert (
        run(BatchNormNet(), config(colour, epochs=1)).target.held == {}
    )  # a row that is empty by chance keeps its bias


def test_two_of_four(trained: nn.Module, images: Pair) -> None:
    done = run(trained, config(images, sparsity=None, granularity="2:4"))
    assert done.allocation["conv"].dense_because
    assert (trained.fc1.weight.view(16, -1, 4) != 0).sum(-1).eq(2).all()


def test_unlabelled_images(trained: nn.Module, images: Pair) -> None:
    done = run(trained, config(images[0], hsic={"lambda_y": 0.0}))
    assert "hsic_y" not in done.history[0]
    with pytest.raises(ValueError, match=r"no labels, and hsic\.lambda_y"):
        run(trained, config(images[0]))


def test_bfloat16_autocast(trained: nn.Module, images: Pair) -> None:
    done = run(trained, config(images, autocast="bfloat16", epochs=12))
    assert all(p.dtype == torch.float32 for p in trained.parameters())
    assert math.isfinite(done.history[-1]["loss"])
    assert accuracy(trained, images) > 0.9


def test_mode_gradients_and_hooks_come_back(trained: nn.Module, images: Pair) -> None:
    trained.eval()
    trained.fc1.train()
    trained.fc2.weight.grad = torch.ones_like(trained.fc2.weight)
    run(trained, config(images))
    assert [module.training for module in (trained, trained.conv, trained.fc1)] == [False, False, True]
    assert torch.equal(trained.fc2.weight.grad, torch.ones_like(trained.fc2.weight))
    assert trained.conv.weight.grad is None
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in trained.modules())


class BatchNormNet(nn.Module):
    """Colour images, BatchNorm of maps and of vectors, a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, groups=4)
        self.fc, self.bn2, self.head = nn.Linear(8 * 36, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.bn1(self.conv1(x)).relu()).relu()
        return self.head(self.bn2(self.fc(x.flatten(1))).relu())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_comes_back(images: Pair, memory_format: torch.memory_format) -> None:
    model = BatchNormNet().to(memory_format=memory_format)
    before = [parameter.stride() for parameter in model.parameters()]
    run(model, config((images[0].expand(-1, 3, -1, -1), images[1])))
    assert [parameter.stride() for parameter in model.parameters()] == before


def test_batchnorm_with_a_last_batch_of_one(images: Pair) -> None:
    colour = images[0].expand(-1, 3, -1, -1)[:65], images[1][:65]
    for source in (
        colour,
        torch.utils.data.TensorDataset(*colour),
        [(p[0], p[1]) for p in zip(*(t.split(64) for t in colour), strict=True)],
    ):
        model = BatchNormNet()
        done = run(model, config(source, batch_size=64))
        assert all(torch.equal(model.get_submodule(name).weight != 0, mask) for name, mask in done.masks.items())


def test_an_interrupt_leaves_parameters_and_statistics_as_they_were(images: Pair) -> None:
    class Interrupt(Callback):
        def on_epoch_end(self, status: Status) -> None:
            raise KeyboardInterrupt

    model = BatchNormNet()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        run(model, config((images[0].expand(-1, 3, -1, -1), images[1])), [Interrupt()])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frozen_batchnorm_stays_as_it_is(images: Pair) -> None:
    colour = images[0].expand(-1, 3, -1, -1), images[1]
    moved = {}
    for frozen in (False, True):
        model = BatchNormNet().eval()
        (norm,) = (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        norm.requires_grad_(not frozen)
        before = copy.deepcopy(norm.state_dict())
        run(model, config(colour, epochs=2))
        moved[frozen] = any(not torch.equal(value, before[name]) for name, value in norm.state_dict().items())
        assert not norm.training
    assert moved == {False: True, True: False}


def test_gradients_may_be_off_around_a_run(trained: nn.Module, images: Pair) -> None:
    other = copy.deepcopy(trained)
    with torch.no_grad():
        run(trained, config(images, epochs=2))
        assert not torch.is_grad_enabled()
    run(other, config(images, epochs=2))
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), other.parameters(), strict=True))
    with torch.inference_mode(), pytest.raises(ValueError, match=r"inference_mode is on, .*; call this outside"):
        run(trained, config(images, epochs=2))


def test_half_precision_is_refused_with_its_cure(trained: nn.Module, images: Pair) -> None:
    with pytest.raises(ValueError, match=r"conv.weight is float16: .*float32 .* autocast='float16'"):
        Trainer(trained.half(), config(images))


def test_double_models_take_float_images(trained: nn.Module, images: Pair) -> None:
    run(trained.double(), config(images, epochs=1))
    assert trained.fc1.weight.dtype == torch.float64


def test_weights_that_are_not_finite_at_the_end_are_refused(trained: nn.Module, images: Pair) -> None:
    one_step = (images[0][:32], images[1][:32])
    with pytest.raises(TrainingError, match=r"fc2\.weight is not finite after step 1; .*lower"):
        run(trained, config(one_step, epochs=1, optimizer={"name": "sgd", "lr": 1e38}, admm={"epochs": 0}))
    assert trained.fc1.weight.isfinite().all()


def test_labels_outside_the_models_classes(trained: nn.Module, images: Pair) -> None:
    with pytest.raises(ValueError, match="labels reach from 0 to 5, and the model has 3 classes"):
        run(trained, config((images[0], images[1].where(images[1] < 2, 5))))


def test_a_section_changed_into_nonsense_is_found(trained: nn.Module, images: Pair) -> None:
    settings = config(images)
    settings.admm.epochs = 9
    with pytest.raises(ValueError, match=r"admm\.epochs=9: more than epochs=4"):
        run(trained, settings)


def test_layers_whose_weights_cannot_be_pruned_are_refused(images: Pair) -> None:
    up = nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.Flatten(), nn.Linear(200, 3))
    with pytest.raises(ValueError, match="0: a transposed convolution can be pruned with granularity='unstructured'"):
        run(up, config(images, granularity="filter"))
    run(up, config(images, epochs=1))
    parametrized = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 3)))
    with pytest.raises(ValueError, match="1: its weight is computed from others"):
        run(parametrized, config(images))


class Ends(Callback):
    """Whether the run told of its end."""

    ended = False

    def on_end(self, status: Status | None) -> None:
        self.ended = True


class Keeper(Callback):
    """Keeps the state after every step and epoch, as a file would."""

    def __init__(self) -> None:
        self.run: Trainer | None = None
        self.states: list[Snapshot] = []

    def on_step(self, status: Status) -> None:
        assert self.run is not None
        state = self.run.state()
        tensors = {name: tensor.contiguous().clone() for name, tensor in state.tensors.items()}
        self.states.append(Snapshot(tensors, json.loads(json.dumps(state.facts))))

    on_epoch_end = on_step


def random_crops(images: Pair) -> torch.utils.data.DataLoader[Any]:
    """A loader that draws from every global generator, images one by one."""

    def augmented(items: list[Any]) -> Any:
        shift = [(torch.randint(3, ()).item(), random.randrange(3), np.random.randint(2)) for _ in items]
        rolled = [
            x.roll((a, b), (1, 2)).flip(2 if flip else 1) for (x, _), (a, b, flip) in zip(items, shift, strict=True)
        ]
        return torch.stack(rolled), torch.stack([y for _, y in items])

    data = torch.utils.data.TensorDataset(*images)
    return torch.utils.data.DataLoader(data, batch_size=64, shuffle=True, collate_fn=augmented)


def with_one_image_alone(images: Pair) -> list[Pair]:
    x, y = images
    return [(x[:60], y[:60]), (x[60:61], y[60:61]), (x[61:110], y[61:110]), (x[110:], y[110:])]


class Promising:
    """Says that it has a batch more than it gives."""

    def __init__(self, images: Pair) -> None:
        self.batches = with_one_image_alone(images)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Pair]:
        yield from self.batches


OWN_ADMM = {"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.01}, "schedule": {"name": "cycle"}}


def own_generator(images: Pair) -> torch.utils.data.DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*images), batch_size=64, shuffle=True, generator=generator
    )


@pytest.mark.parametrize(
    ("make_source", "fields"),
    [
        (lambda images: images, {}),
        (random_crops, {"granularity": "filter", "exclude": "head"}),
        (random_crops, {"granularity": "filter", "exclude": "head", "admm": {"epochs": 1}}),
        (random_crops, {"admm": {"epochs": 1}, "gradual": {"epochs": 2}}),
        (own_generator, {"admm": {"epochs": 0}, "autocast": "bfloat16"}),
        (random_crops, {"distillation": {"gradient_weight": 1}}),
        (with_one_image_alone, {}),
        (Promising, {"admm": OWN_ADMM}),
        (
            random_crops,
            {
                "admm": OWN_ADMM,
                "optimizer": {"name": "adamw", "weight_decay": 0.1},
                "schedule": {"name": "multistep", "milestones": (1,)},
            },
        ),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(images: Pair, make_source: Any, fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    dense, colour = BatchNormNet(), (images[0].expand(-1, 3, -1, -1)[:150], images[1][:150])

    def do(states: list[Snapshot], resume: Snapshot | None = None) -> tuple[nn.Module, Trainer]:
        model, keeper = copy.deepcopy(dense), Keeper()
        keeper.run = Trainer(model, config(make_source(colour), **{"sparsity": 0.5} | fields))
        keeper.states = states
        with seeded(5):
            keeper.run.fit([keeper], resume)
        return model, keeper.run

    states: list[Snapshot] = []
    straight, first = do(states)
    assert len(states) == 16
    for at in (0, 1, 2, 3, 5, 7, 8, 9, 14, 15):
        resumed, second = do([], states[at])
        for name, value in straight.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (at, name)
        assert all(torch.equal(mask, second.masks[name]) for name, mask in first.masks.items())
        assert [entry | {"seconds": 0} for entry in first.history] == [e | {"seconds": 0} for e in second.history]
        assert first.residual == second.residual
        assert first.allocation == second.allocation


def test_states_of_other_runs_are_refused(trained: nn.Module, images: Pair) -> None:
    keeper = Keeper()
    keeper.run = Trainer(copy.deepcopy(trained), config(images))
    keeper.run.fit([keeper])
    before, state = copy.deepcopy(trained.state_dict()), keeper.states[-1]
    with pytest.raises(StateError, match="of a run of 12 steps in 4 epochs, and this one has 15 in 5"):
        Trainer(trained, config(images, epochs=5)).fit(resume=state)
    for phases in ({"admm": {"epochs": 2}}, {"gradual": {"epochs": 1}}, {"gradual": {"interval": 3}}):
        with pytest.raises(StateError, match="of a run of other phases"):
            Trainer(trained, config(images, **phases)).fit(resume=state)
    with pytest.raises(StateError, match="other masks than this run"):
        Trainer(BatchNormNet(), config((images[0].expand(-1, 3, -1, -1), images[1]))).fit(resume=state)
    with pytest.raises(StateError, match="incomplete"):
        Trainer(trained, config(images)).fit(resume=Snapshot(state.tensors, {"status": state.facts["status"]}))
    odd = Snapshot(state.tensors | {"model.conv.weight": torch.zeros(2)}, state.facts)
    with pytest.raises(StateError, match=r"conv.weight has shape \(2,\), and this run's \(6, 1, 3, 3\)"):
        Trainer(trained, config(images)).fit(resume=odd)
    with pytest.raises(RuntimeError, match="no run is in progress"):
        keeper.run.state()
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


class NaNAfter(nn.Module):
    """Turns to NaN after some training forwards."""

    def __init__(self, model: nn.Module, after: int) -> None:
        super().__init__()
        self.model, self.left = model, after

    def forward(self, x: Tensor) -> Tensor:
        self.left -= self.training
        return self.model(x) * (float("nan") if self.left < 0 else 1.0)


def test_nan_loss_leaves_the_model_as_it_was(trained: nn.Module, images: Pair) -> None:
    model, spy = NaNAfter(trained, 6), Ends()  # one of them before training
    before = copy.deepcopy(trained.state_dict())
    with pytest.raises(TrainingError, match=r"loss is not finite at step \d+ \(distillation.*lower optimizer.lr"):
        run(model, config(images), [spy])
    for name, value in trained.state_dict().items():
        assert torch.equal(value, before[name])
    assert spy.ended
    assert not any(m._forward_pre_hooks for m in model.modules())


class Spatial(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_models_that_cannot_be_used(trained: nn.Module, images: Pair) -> None:
    before = copy.deepcopy(trained.state_dict())
    with pytest.raises(ValueError, match=r"returns a tensor \(2, 1, 8, 8\)"):
        run(Spatial(trained), config(images))
    with pytest.raises(ValueError, match=r"the model does not take images \(1, 12, 12\) \(.*\); give images of"):
        run(trained, config((torch.rand(64, 1, 12, 12), images[1][:64])))
    with pytest.raises(ValueError, match="logits are not finite before training"):
        run(NaNAfter(trained, -1).eval(), config(images))
    trained.fc1.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="fc1: the weight has requires_grad=False"):
        run(trained, config(images))
    for name, value in trained.state_dict().items():
        assert torch.equal(value, before[name])


def test_images_out_of_range_are_found_in_a_later_batch_too(trained: nn.Module, images: Pair) -> None:
    x, y = images
    before = copy.deepcopy(trained.state_dict())
    batches = [(x[:64], y[:64]), (x[64:128] * 255, y[64:128])]
    with pytest.raises(ValueError, match="outside pixel_range"):
        run(trained, config(batches))
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_radius_follows_eps_or_the_teachers_agreement(trained: nn.Module, images: Pair) -> None:
    assert run(trained, config(images, eps=0.1, epochs=1)).radius == pytest.approx(0.15)
    found = run(copy.deepcopy(trained), config(images, eps=None, epochs=1)).radius
    assert 0 < found < 1
    given = config(images, perturbation={"radius": 0.07}, epochs=1)
    assert run(trained, given).radius == 0.07
    assert run(trained, config(images, perturbation={"kind": "none"}, epochs=1)).radius == 0


def test_own_optimizer_of_admm_starts_anew_for_fine_tuning(trained: nn.Module, images: Pair) -> None:
    settings = config(
        images,
        epochs=5,
        admm={"epochs": 3, "optimizer": {"name": "sgd", "lr": 0.01}, "schedule": {"name": "cycle"}, "hsic": False},
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(name="multistep", milestones=(1,)),
    )
    history = run(trained, settings).history
    assert [entry["lr"] for entry in history] == pytest.approx([0.01, 0.001, 0.0001, 1e-3, 1e-4])
    assert ["hsic_x" in entry for entry in history] == [False, False, False, True, True]


@pytest.mark.parametrize("phases", [{"admm": OWN_ADMM}, {"admm": {"epochs": 2}, "gradual": {"epochs": 2}}])
@pytest.mark.parametrize("make_source", [Promising, with_one_image_alone, None])
def test_phases_and_rates_go_by_the_batches_that_there_are(images: Pair, make_source: Any, phases: Any) -> None:
    colour = images[0].expand(-1, 3, -1, -1)[:161], images[1][:161]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*colour), batch_size=40, shuffle=True)
    done = run(BatchNormNet(), config(make_source(colour) if make_source else loader, epochs=5, **phases))
    names = ["admm", "admm"] + (["gradual"] * 2 if "gradual" in phases else ["fine-tune"] * 2) + ["fine-tune"]
    assert [entry["phase"] for entry in done.history] == names
    assert all(torch.equal(done.model.get_submodule(name).weight != 0, mask) for name, mask in done.masks.items())
    if make_source is not Promising:
        assert float(str(done.history[-1]["lr"])) < 0.1 * 5e-3  # the cosine is at its end


def test_admm_alone_with_an_optimizer_of_its_own(trained: nn.Module, images: Pair) -> None:
    done = run(trained, config(images, epochs=2, admm={"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.01}}))
    assert [entry["phase"] for entry in done.history] == ["admm", "admm"]
    assert all(torch.equal(trained.get_submodule(name).weight != 0, mask) for name, mask in done.masks.items())


def test_input_gradients_stay_closer_to_the_teachers_with_their_term(trained: nn.Module, images: Pair) -> None:
    teacher = copy.deepcopy(trained)
    left = {}
    for weight in (0.0, 100.0):
        term = {"gradient_weight": weight, "gradient_share": 1.0}
        model = copy.deepcopy(trained)
        done = run(model, config(images, sparsity=0.9, epochs=16, distillation=term))
        assert all(("gradients" in entry) == (weight > 0) for entry in done.history)
        x = images[0].clone().requires_grad_()
        generator = torch.Generator().manual_seed(0)
        left[weight] = gradient_loss(model(x), teacher(x), x, generator=generator).item()
    assert left[100.0] < 0.85 * left[0.0]


@pytest.mark.parametrize("after", ["fine-tune", "gradual"])
def test_the_residual_is_that_of_the_weights_before_they_are_masked(
    trained: nn.Module, images: Pair, after: str
) -> None:
    gradual = {"epochs": int(after == "gradual")}
    trainer = Trainer(trained, config(images, epochs=3, admm={"epochs": 2, "rho": 0.01}, gradual=gradual))
    seen: list[float] = []

    class Watch(Callback):
        def on_step(self, status: Status) -> None:
            if status.phase == "admm":
                assert trainer.target.admm is not None
                seen.append(trainer.target.admm.residual())

    with seeded(0):
        trainer.fit([Watch()])
    assert trainer.residual == pytest.approx(seen[-1])


class Failing(Callback):
    def __init__(self, at: str) -> None:
        self.at = at

    def on_epoch_end(self, status: Status) -> None:
        if self.at == f"epoch {status.epoch}":
            raise KeyError(self.at)

    def on_end(self, status: Status | None) -> None:
        if self.at == "end":
            raise KeyError(self.at)


def test_every_callback_hears_of_the_end_even_if_one_raises_then(trained: nn.Module, images: Pair) -> None:
    last, trainer = Ends(), Trainer(trained, config(images))
    with pytest.raises(KeyError, match="end"):
        trainer.fit([Failing("end"), last])
    assert last.ended
    with pytest.raises(RuntimeError, match="no run is in progress"):
        trainer.state()


@pytest.mark.parametrize(("epoch", "phases"), [(1, {"admm": {"epochs": 2}}), (4, {})])
def test_after_an_error_nothing_is_left_of_the_run(
    trained: nn.Module, images: Pair, epoch: int, phases: dict[str, Any]
) -> None:
    trainer = Trainer(trained, config(images, **phases))
    with pytest.raises(KeyError):
        trainer.fit([Failing(f"epoch {epoch}")])
    assert trainer.masks == {}
    assert not trainer.target.done
    assert trainer.target.admm is None
    assert trainer.schedule is None
    assert trainer.residual is None


def test_what_is_set_later_does_not_reach_the_run(trained: nn.Module, images: Pair) -> None:
    settings = config(images)
    trainer = Trainer(trained, settings)
    settings.gradual.epochs = 100
    trainer.fit()
    assert [entry["phase"] for entry in trainer.history] == ["gradual"] * 2 + ["fine-tune"] * 2


def test_running_out_of_memory_in_a_resume_is_not_a_damaged_state(
    trained: nn.Module, images: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper()
    keeper.run = Trainer(copy.deepcopy(trained), config(images))
    keeper.run.fit([keeper])
    again = Trainer(trained, config(images))

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(again.target, "load_state", full)
    with pytest.raises(torch.OutOfMemoryError):
        again.fit(resume=keeper.states[0])
