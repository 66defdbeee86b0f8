"""`PwoADistiller` over real NNI pruners and quantizers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import nni
import pytest
import torch
from conftest import TinyNet
from nni.compression import TorchEvaluator
from nni.compression.base.compressor import Compressor, Distiller
from nni.compression.distillation import DynamicLayerwiseDistiller
from nni.compression.pruning import (
    AGPPruner,
    FPGMPruner,
    L1NormPruner,
    L2NormPruner,
    LevelPruner,
    LinearPruner,
    MovementPruner,
    SlimPruner,
    TaylorPruner,
)
from nni.compression.quantization import LsqQuantizer, QATQuantizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pwoa_plugin import PwoADistiller, PwoAPruner, make_evaluator
from pwoa_plugin.errors import TrainingError
from pwoa_plugin.method.perturbation import Patterns

Pair = tuple[Tensor, Tensor]
STEPS = 24


def pruned(granularity: Any = (1,), ratio: float = 0.5, **entry: Any) -> list[dict[str, Any]]:
    granularity = list(granularity) if isinstance(granularity, tuple) else granularity
    chosen = entry or {"op_types": ["Conv2d", "Linear"], "target_names": ["weight"]}
    return [{**chosen, "sparse_ratio": ratio, "granularity": granularity}]


FILTERS = {"op_names": ["conv", "fc1"]}
QUANTIZED = [
    {
        "op_types": ["Conv2d", "Linear"],
        "target_names": ["weight", "_input_"],
        "quant_dtype": "int8",
        "quant_scheme": "affine",
        "granularity": "default",
    }
]


@pytest.fixture
def evaluator(trained: TinyNet, images: Pair) -> TorchEvaluator:
    loader = DataLoader(TensorDataset(*images), batch_size=32, shuffle=True)
    return make_evaluator(trained, loader, torch.optim.Adam, 5e-3)


@pytest.fixture
def teacher(trained: TinyNet) -> TinyNet:
    return copy.deepcopy(trained)


def accuracy(model: nn.Module, images: Pair) -> float:
    return (model(images[0]).argmax(1) == images[1]).float().mean().item()


def sparsity(model: TinyNet, *names: str) -> float:
    weights = [model.get_submodule(name).weight for name in names or ("conv", "fc1", "fc2")]
    return sum(int(w.eq(0).sum()) for w in weights) / sum(w.numel() for w in weights)


def scheduled(kind: Any, inner: Any, times: int = 4, interval: int = 4) -> Callable[..., Compressor]:
    def make(model: nn.Module, evaluator: TorchEvaluator) -> Compressor:
        return kind(inner(model, evaluator), interval_steps=interval, total_times=times, evaluator=evaluator)

    return make


ROWS = pruned("out_channel", **FILTERS)
NNI_PRUNERS: dict[str, tuple[Callable[..., Compressor], tuple[str, ...]]] = {
    "AGP + Level": (scheduled(AGPPruner, lambda m, e: LevelPruner(m, pruned())), ()),
    "Linear + Level": (scheduled(LinearPruner, lambda m, e: LevelPruner(m, pruned())), ()),
    "AGP + L1Norm": (scheduled(AGPPruner, lambda m, e: L1NormPruner(m, ROWS)), ("conv", "fc1")),
    "AGP + L2Norm": (scheduled(AGPPruner, lambda m, e: L2NormPruner(m, ROWS)), ("conv", "fc1")),
    "AGP + FPGM": (scheduled(AGPPruner, lambda m, e: FPGMPruner(m, ROWS)), ("conv", "fc1")),
    "AGP + Taylor": (scheduled(AGPPruner, lambda m, e: TaylorPruner(m, pruned(), e, training_steps=4)), ()),
    "AGP + Slim": (scheduled(AGPPruner, lambda m, e: SlimPruner(m, pruned(), e, training_steps=4)), ()),
    "Taylor": (lambda m, e: TaylorPruner(m, pruned(), e, training_steps=6), ()),
    "Slim": (lambda m, e: SlimPruner(m, pruned(), e, training_steps=6, regular_scale=0.01), ()),
    "Movement": (lambda m, e: MovementPruner(m, pruned(), e, warmup_step=4, cooldown_begin_step=16), ()),
}


@pytest.mark.parametrize("name", NNI_PRUNERS)
def test_each_nni_pruner_meets_its_sparsity_in_the_plain_model(
    trained: TinyNet, teacher: TinyNet, images: Pair, evaluator: TorchEvaluator, name: str
) -> None:
    make, layers = NNI_PRUNERS[name]
    distiller = PwoADistiller.from_compressor(
        make(trained, evaluator), [{"op_types": ["Linear"]}], teacher_model=teacher, eps=0.1
    )
    assert isinstance(distiller, Distiller)
    assert distiller.compress(max_steps=STEPS) is trained
    assert set(distiller.terms) == {"distillation", "features", "hsic_x", "hsic_y"}
    assert distiller.hidden_layers == ["fc1", "fc2"]
    masks, state = distiller.get_masks(), trained.state_dict()
    for layer in masks:
        assert torch.equal(state[f"{layer}.weight"], state[f"{layer}._nni_wrapper.weight"])
    wrapped = trained(images[0])
    distiller.unwrap_model()
    distiller.unwrap_model()
    assert not any(hasattr(module, "_nni_wrapper") for module in trained.modules())
    assert sparsity(trained, *layers) == pytest.approx(0.5, abs=0.01)
    assert all(torch.equal(trained.get_submodule(n).weight != 0, m["weight"].bool()) for n, m in masks.items())
    torch.testing.assert_close(trained(images[0]), wrapped)
    distiller.wrap_model()
    torch.testing.assert_close(trained(images[0]), wrapped)


def test_masks_are_baked_for_nnis_own_unwrap_too(trained: TinyNet, teacher: TinyNet, evaluator: TorchEvaluator) -> None:
    agp = NNI_PRUNERS["AGP + Level"][0](trained, evaluator)
    distiller = PwoADistiller.from_compressor(agp, [], teacher_model=teacher, eps=0.1)
    distiller.compress(STEPS)
    agp.unwrap_model()
    assert sparsity(trained) == pytest.approx(0.5, abs=0.01)
    assert not distiller._is_wrapped
    distiller.unwrap_model()
    distiller.compress(STEPS)  # wraps again
    assert hasattr(trained.fc1, "_nni_wrapper")
    distiller.unwrap_model()
    assert sparsity(trained) == pytest.approx(0.5, abs=0.01)


def test_it_keeps_the_teachers_answers_on_perturbed_images(
    trained: TinyNet, teacher: TinyNet, images: Pair, evaluator: TorchEvaluator
) -> None:
    noisy = Patterns(radius=0.3)(images[0], torch.Generator().manual_seed(0))

    def distance(model: nn.Module) -> float:
        """Total variation, mean over images."""
        return (model(noisy).softmax(1) - teacher(noisy).softmax(1)).abs().sum(1).mean().item() / 2

    alone = copy.deepcopy(trained)
    loader = DataLoader(TensorDataset(*images), batch_size=32, shuffle=True)
    other = make_evaluator(alone, loader, torch.optim.Adam, 5e-3)
    make = scheduled(AGPPruner, lambda m, e: LevelPruner(m, pruned(ratio=0.8)))
    make(alone, other).compress(60, None)
    PwoADistiller.from_compressor(make(trained, evaluator), [], teacher_model=teacher, eps=0.2).compress(60)
    assert distance(trained) < 0.5 * distance(alone)


def test_an_evaluator_that_trains_no_pruned_weight_is_refused(trained: TinyNet, teacher: TinyNet, images: Pair) -> None:
    """NNI finds the optimizer's parameters by identity when the first compressor has the evaluator."""

    def train(model: nn.Module, optimizer: Any, step: Any, scheduler: Any, max_steps: int, max_epochs: Any) -> None:
        for _ in range(max_steps):
            optimizer.zero_grad()
            step(images, model).backward()
            optimizer.step()

    def of_nni(parameters: Any = None) -> TorchEvaluator:
        optimizer = nni.trace(torch.optim.Adam)(parameters or trained.parameters(), lr=5e-3)
        return TorchEvaluator(train, optimizer, lambda batch, model: F.cross_entropy(model(batch[0]), batch[1]))

    for nothing in (trained.named_parameters(), teacher.parameters()):
        with pytest.raises(ValueError, match="optimizer trains none of the weights"):
            PwoADistiller(trained, [], of_nni(nothing), teacher, eps=0.1)
    evaluator = of_nni()
    agp = AGPPruner(LevelPruner(trained, pruned()), interval_steps=2, total_times=2, evaluator=evaluator)
    with pytest.raises(ValueError, match=r"trains none of the weights conv\.weight, fc1\.weight, fc2\.weight"):
        PwoADistiller.from_compressor(agp, [], teacher_model=teacher, eps=0.1)
    agp.unwrap_model()
    evaluator = of_nni()
    agp = AGPPruner(LevelPruner(trained, pruned(), evaluator), interval_steps=2, total_times=2)
    distiller = PwoADistiller.from_compressor(agp, [], teacher_model=teacher, eps=0.1)
    distiller.compress(6)
    distiller.unwrap_model()
    assert sparsity(trained) == pytest.approx(0.5, abs=0.01)


def test_alone_it_trains_the_model_as_it_is(
    trained: TinyNet, teacher: TinyNet, images: Pair, evaluator: TorchEvaluator
) -> None:
    with torch.no_grad():
        trained.fc1.weight.mul_(0.3)
    parameters = list(trained.parameters())
    distiller = PwoADistiller(trained, [{"op_names": ["fc2"]}], evaluator, teacher, eps=0.1)
    distiller.compress(max_epochs=5)
    first = distiller.terms["distillation"].item()
    distiller.compress(max_epochs=10)
    assert distiller.terms["distillation"].item() < first
    assert distiller.hidden_layers == ["fc2"]
    assert all(a is b for a, b in zip(parameters, trained.parameters(), strict=True))
    assert accuracy(trained, images) > 0.95


def test_under_masks_made_before(trained: TinyNet, teacher: TinyNet, images: Pair, evaluator: TorchEvaluator) -> None:
    level = LevelPruner(trained, pruned())
    level.compress()
    distiller = PwoADistiller.from_compressor(level, [], teacher_model=teacher, evaluator=evaluator, eps=0.1)
    distiller.compress(12)
    distiller.unwrap_model()
    assert sparsity(trained) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["AGP + Level", "Movement", "Slim"])
def test_the_model_between_wrapping_and_unwrapping(
    trained: TinyNet, teacher: TinyNet, images: Pair, evaluator: TorchEvaluator, name: str
) -> None:
    make = NNI_PRUNERS[name][0](trained, evaluator)
    distiller = PwoADistiller.from_compressor(make, [], teacher_model=teacher, eps=0.1)
    distiller.compress(STEPS)
    copy.deepcopy(trained)  # straight after training
    masks = {layer: targets["weight"] for layer, targets in distiller.get_masks().items()}
    distiller.unwrap_model()
    with torch.no_grad():
        trained.fc2.weight.copy_(torch.full_like(trained.fc2.weight, 5))  # an edit of the plain model
    distiller.wrap_model()
    distiller.unwrap_model()
    assert torch.equal(trained.fc2.weight, 5 * masks["fc2"])
    distiller.wrap_model()
    plain = teacher.state_dict()
    trained.load_state_dict(plain, strict=False)
    distiller.unwrap_model()
    for layer, mask in masks.items():
        assert torch.equal(trained.get_submodule(layer).weight, plain[f"{layer}.weight"] * mask)


def test_a_compress_after_unwrapping_wraps_again(trained: TinyNet, teacher: TinyNet, evaluator: TorchEvaluator) -> None:
    level = LevelPruner(trained, pruned())
    level.compress()
    distiller = PwoADistiller.from_compressor(level, [], teacher_model=teacher, evaluator=evaluator, eps=0.1)
    distiller.unwrap_model()
    distiller.compress(6)
    distiller.unwrap_model()
    assert sparsity(trained) == pytest.approx(0.5, abs=0.01)
    later = LevelPruner.from_compressor(distiller, [])
    with pytest.raises(ValueError, match="a later compressor wraps the model"):
        distiller.compress(6)
    later.unwrap_model()


# -- other compressors' losses -------------------------------------------------------------------


class Penalty(Compressor):
    """A compressor that adds a penalty to the loss, and notes what its patch was given."""

    mode = "pruning"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.given: list[Tensor] = []

    def _fuse_preprocess(self, evaluator: Any) -> None:
        self.given.clear()

        def penalised(loss: Tensor, batch: Any) -> Tensor:
            self.given.append(loss.detach())
            return loss + 1e-3 * self.bound_model.fc1.bias.square().sum()

        evaluator.patch_loss(penalised)

    def _fuse_postprocess(self, evaluator: Any) -> None:
        pass


@pytest.mark.parametrize("order", ["distiller over penalty", "penalty over distiller"])
@pytest.mark.parametrize("origin", [0.0, 0.5])
def test_penalties_of_others_are_added_whole_in_either_order(
    trained: TinyNet, teacher: TinyNet, images: Pair, order: str, origin: float
) -> None:
    losses: list[Tensor] = []

    def own(logits: Tensor, y: Tensor) -> Tensor:
        losses.append(F.cross_entropy(logits, y))
        return losses[-1]

    ordered = DataLoader(TensorDataset(*images), batch_size=32)
    evaluator = make_evaluator(trained, ordered, lr=1e-4, loss=own)
    options: dict[str, Any] = {"teacher_model": teacher, "eps": 0.1, "origin_loss_lambda": origin}
    if order == "distiller over penalty":
        penalty = Penalty(trained, [], evaluator)
        distiller = PwoADistiller.from_compressor(penalty, [], **options)
        outer: Compressor = distiller
    else:
        distiller = PwoADistiller(trained, [], evaluator, **options)
        outer = penalty = Penalty.from_compressor(distiller, [])
    added: list[Tensor] = []
    evaluator = outer.evaluator
    train = evaluator.train

    def watched(*args: Any) -> None:
        def noted(loss: Tensor, batch: Any) -> Tensor:
            ours = torch.stack(list(distiller.terms.values())).sum()
            added.append(loss.detach() - penalty.given[-1] - ours)
            return loss

        evaluator.patch_loss(noted)
        train(*args)

    evaluator.train = watched
    bias = trained.fc1.bias.detach().square().sum()
    outer.compress(3, None)
    assert len(losses) == 3
    for given, loss in zip(penalty.given, losses, strict=True):
        torch.testing.assert_close(given, origin * loss.detach())  # what the penalty is added to
    torch.testing.assert_close(added[0], 1e-3 * bias, atol=1e-5, rtol=1e-3)


def test_slim_over_the_distiller_keeps_its_penalty_and_its_zeros(
    trained: TinyNet, teacher: TinyNet, evaluator: TorchEvaluator
) -> None:
    """Slim's factors shrink by its own penalty, which a distiller that was fused before must not scale by 0."""

    class Watched(SlimPruner):
        def _fuse_postprocess(self, evaluator: Any) -> None:  # before the distiller's, which bakes the factors in
            self.seen = [f.mean().item() for targets in self.scaling_factors.values() for f in targets.values()]

    off = {"distillation": {"alpha": 0, "feature_weight": 0}, "hsic": {"lambda_x": 0, "lambda_y": 1e-9}}
    distiller = PwoADistiller(trained, [], evaluator, teacher, eps=0.1, **off)
    slim = Watched.from_compressor(distiller, pruned(), training_steps=12, regular_scale=1.0)
    slim.compress(STEPS, None)
    assert all(mean < 0.9 for mean in slim.seen)
    slim.unwrap_model()  # NNI's own
    assert sparsity(trained) == pytest.approx(0.5, abs=0.01)


def test_a_pruner_over_the_distiller_without_masks_is_logged(
    trained: TinyNet, teacher: TinyNet, evaluator: TorchEvaluator, caplog: pytest.LogCaptureFixture
) -> None:
    distiller = PwoADistiller(trained, [], evaluator, teacher, eps=0.1)
    LevelPruner.from_compressor(distiller, pruned()).compress(6, None)
    assert "no mask was made for conv, fc1, fc2: a pruner that makes one at once goes inside AGPPruner" in caplog.text


def test_a_users_nan_loss_is_left_out(trained: TinyNet, teacher: TinyNet, images: Pair) -> None:
    loader = DataLoader(TensorDataset(*images), batch_size=32)
    evaluator = make_evaluator(trained, loader, loss=lambda logits, y: logits.sum() * torch.nan)
    PwoADistiller(trained, [], evaluator, teacher, eps=0.1).compress(6)
    assert trained.fc1.weight.isfinite().all()


def test_nnis_own_distiller_sees_the_students_answers_to_its_own_images(
    trained: TinyNet, teacher: TinyNet, images: Pair, evaluator: TorchEvaluator
) -> None:
    """Our forward, on perturbed images, comes after it has compared student and teacher."""
    entry = {"op_names": ["fc2"], "lambda": 1.0, "apply_method": "mse"}
    nnis = DynamicLayerwiseDistiller(trained, [entry], evaluator, copy.deepcopy(teacher), lambda b, m: m(b[0]), 0.0)
    found: list[Tensor] = []
    compute = nnis.compute_distill_loss
    nnis.compute_distill_loss = lambda: found.append(compute()) or found[-1]
    PwoADistiller.from_compressor(nnis, [], teacher_model=teacher, eps=0.3).compress(1)
    assert found[0].item() == pytest.approx(0, abs=1e-8)  # the student is its teacher still


# -- quantizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["quantizer last", "distiller last"])
@pytest.mark.parametrize("kind", [QATQuantizer, LsqQuantizer])
def test_quantizers_keep_masks_and_train_on_the_distillers_loss(
    trained: TinyNet, teacher: TinyNet, images: Pair, evaluator: TorchEvaluator, kind: Any, order: str
) -> None:
    options = {"quant_start_step": 8} if kind is QATQuantizer else {}
    agp: Compressor = NNI_PRUNERS["AGP + Level"][0](trained, evaluator)
    if order == "quantizer last":
        distiller = PwoADistiller.from_compressor(agp, [], teacher_model=teacher, eps=0.1)
        outer: Compressor = kind.from_compressor(distiller, QUANTIZED, **options)
    else:
        quantizer = kind.from_compressor(agp, QUANTIZED, **options)
        outer = distiller = PwoADistiller.from_compressor(quantizer, [], teacher_model=teacher, eps=0.1)
    outer.compress(STEPS, None)
    assert set(distiller.terms) == {"distillation", "features", "hsic_x", "hsic_y"}
    trained(images[0])
    assert sparsity(trained) == pytest.approx(0.5, abs=0.01)  # the effective weights, quantized
    values = trained.fc1.weight.unique()
    assert len(values) <= 256
    assert accuracy(trained, images) > 0.9
    outer.unwrap_model()
    assert sparsity(trained) == pytest.approx(0.5, abs=0.01)


GRADIENTS = {"gradient_weight": 1, "gradient_share": 1}


@pytest.mark.parametrize("kind", [None, QATQuantizer, LsqQuantizer])
def test_input_gradients_are_distilled_under_pruners_and_quantizers(
    trained: TinyNet, teacher: TinyNet, evaluator: TorchEvaluator, kind: Any
) -> None:
    agp = NNI_PRUNERS["AGP + Level"][0](trained, evaluator)
    distiller = PwoADistiller.from_compressor(agp, [], teacher_model=teacher, eps=0.1, distillation=GRADIENTS)
    (kind.from_compressor(distiller, QUANTIZED) if kind else distiller).compress(STEPS, None)
    assert set(distiller.terms) == {"distillation", "gradients", "features", "hsic_x", "hsic_y"}
    assert distiller.terms["gradients"] > 0


def test_beside_nnis_own_distiller(trained: TinyNet, teacher: TinyNet, images: Pair, evaluator: TorchEvaluator) -> None:
    nnis = DynamicLayerwiseDistiller(
        trained,
        [{"op_types": ["Linear"], "lambda": 0.1, "apply_method": "mse"}],
        evaluator,
        copy.deepcopy(teacher),
        lambda batch, model: model(batch[0]),
        0.5,
    )
    PwoADistiller.from_compressor(nnis, [], teacher_model=teacher, eps=0.1).compress(6)
    assert accuracy(trained, images) > 0.95


# -- batches, teachers ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_teacher_predict_gets_batches_with_perturbed_images(
    trained: TinyNet, teacher: TinyNet, images: Pair, form: str
) -> None:
    class Odd(nn.Module):
        """A network that takes a batch and returns no tensor."""

        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, batch: Any) -> dict[str, Tensor]:
            x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
            assert len(x) == len(y)
            return {"answer": self.net(x)}

    def collate(items: list[Any]) -> Any:
        x, y = torch.utils.data.default_collate(items)
        return (x, y) if form == "tuple" else {"x": x, "y": y, "note": "text"}

    asked: list[Tensor] = []

    def predict(batch: Any, model: nn.Module) -> Tensor:
        asked.append(batch["x"] if form == "dict" else batch[0])
        return model(batch)["answer"]

    model = Odd(trained)
    loader = DataLoader(TensorDataset(*images), batch_size=32, collate_fn=collate)
    evaluator = make_evaluator(model, loader)
    evaluator._ori_training_step = evaluator._training_step = lambda batch, model: model(batch)["answer"].sum() * 0
    distiller = PwoADistiller(model, [], evaluator, Odd(teacher), predict, eps=0.1)
    distiller.compress(6)
    assert distiller.hidden_layers == ["net.fc1", "net.fc2"]
    assert set(distiller.terms) == {"distillation", "features", "hsic_x", "hsic_y"}
    assert torch.equal(asked[-1], asked[-2])  # both networks see the same images
    assert not torch.equal(asked[-1], images[0][160:])


def test_unlabelled_images(trained: TinyNet, teacher: TinyNet, images: Pair) -> None:
    evaluator = make_evaluator(trained, DataLoader(images[0], batch_size=32))
    PwoADistiller(trained, [], evaluator, teacher, eps=0.1, hsic={"lambda_y": 0}).compress(6)
    with pytest.raises(ValueError, match=r"y is missing, and hsic.lambda_y=5e-05 needs labels"):
        PwoADistiller(trained, [], evaluator, teacher, eps=0.1).compress(6)


def test_the_teacher_may_be_the_model_itself(trained: TinyNet, images: Pair, evaluator: TorchEvaluator) -> None:
    agp = NNI_PRUNERS["AGP + Level"][0](trained, evaluator)
    distiller = PwoADistiller.from_compressor(agp, [], teacher_model=trained, eps=0.1)
    before = distiller.loss.teacher(images[0])
    distiller.compress(STEPS)
    torch.testing.assert_close(distiller.loss.teacher(images[0]), before)


# -- refusals ------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_refused_in_one_line(
    trained: TinyNet, teacher: TinyNet, evaluator: TorchEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = copy.deepcopy(trained.state_dict())

    def alone(config_list: Any = (), **options: Any) -> PwoADistiller:
        given = {"evaluator": evaluator, "teacher_model": teacher} | options
        return PwoADistiller(trained, list(config_list) if isinstance(config_list, tuple) else config_list, **given)

    def over(make: Callable[..., Compressor]) -> PwoADistiller:
        compressor = make(trained, evaluator)
        try:
            return PwoADistiller.from_compressor(compressor, [], teacher_model=teacher)
        finally:
            if compressor._is_wrapped:
                compressor.unwrap_model()

    def too_short(make: Callable[..., Compressor], **length: int) -> None:
        distiller = over(make)
        try:
            distiller.compress(**length)
        finally:
            distiller.unwrap_model()

    refusals = {
        "evaluator is missing": lambda: alone(evaluator=None),
        "teacher_model is missing": lambda: alone(teacher_model=None),
        "origin_loss_lambda=-1; give a number of at least 0": lambda: alone(origin_loss_lambda=-1),
        "config_list: give a list of NNI's dicts": lambda: alone({}),
        "config_list: .*Wrong key 'nonsense'": lambda: alone([{"op_types": ["Linear"], "nonsense": 1}]),
        "config_list selects no layer": lambda: alone([{"op_types": ["Conv3d"]}]),
        "config_list: op_names: the model has no module 'fc9'; did you mean fc2 or fc1": lambda: alone(
            [{"op_names": ["fc9"]}]
        ),
        "lambda has no effect: entries select modules, whose inputs are the T_j": lambda: alone(
            [{"op_types": ["Linear"], "lambda": 2}]
        ),
        "_output_0 has no effect: entries select modules, whose inputs are the T_j": lambda: alone(
            [{"op_types": ["Linear"], "target_names": ["_output_0"]}]
        ),
        "hsic.layers: the model has no module 'fc7'": lambda: alone(hsic={"layers": "fc7"}),
        "both name hidden layers": lambda: alone([{"op_types": ["Linear"]}], hsic={"layers": "fc2"}),
        "give max_steps or max_epochs, one": lambda: alone().compress(),
        "LevelPruner has made no mask, .* inside AGPPruner": lambda: over(lambda m, e: LevelPruner(m, pruned(), e)),
        "FPGMPruner has made no mask": lambda: over(lambda m, e: FPGMPruner(m, ROWS, e)),
        "PwoADistiller and PwoAPruner cannot be fused": lambda: over(lambda m, e: PwoAPruner(m, pruned(), e)),
        "PwoADistiller and PwoADistiller cannot be fused": lambda: over(lambda m, e: PwoADistiller(m, [], e, teacher)),
        "AGPPruner over TaylorPruner misses the target: training_steps=3 and interval_steps=4": lambda: over(
            scheduled(AGPPruner, lambda m, e: TaylorPruner(m, pruned(), e, training_steps=3))
        ),
        "15 steps are over before AGPPruner has pruned .* takes 16": lambda: too_short(
            NNI_PRUNERS["AGP + Level"][0], max_steps=15
        ),
        "12 steps are over before MovementPruner": lambda: too_short(NNI_PRUNERS["Movement"][0], max_epochs=2),
        "5 steps are over before TaylorPruner": lambda: too_short(NNI_PRUNERS["Taylor"][0], max_steps=5),
    }
    for said, refused in refusals.items():
        with pytest.raises(ValueError, match=said) as caught:
            refused()
        assert "\n" not in str(caught.value)
        assert not any(hasattr(module, "_nni_wrapper") for module in trained.modules()), said
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_a_refused_fusion_leaves_the_other_compressor_wrapped(
    trained: TinyNet, teacher: TinyNet, images: Pair, evaluator: TorchEvaluator
) -> None:
    level = LevelPruner(trained, pruned(), evaluator)
    level.compress()
    answer = trained(images[0])
    with pytest.raises(ValueError, match=r"hsic\.sgma: unknown key"):
        PwoADistiller.from_compressor(level, [], teacher_model=teacher, hsic={"sgma": 1})
    torch.testing.assert_close(trained(images[0]), answer)
    assert hasattr(trained.fc1, "_nni_wrapper")


@pytest.mark.parametrize("name", ["AGP + Level", "Movement", "Slim"])
def test_whatever_is_raised_leaves_the_weights_as_they_were_and_the_evaluator_free(
    trained: TinyNet, teacher: TinyNet, images: Pair, name: str
) -> None:
    before = copy.deepcopy(trained.state_dict())
    x, y = images
    loader = DataLoader(TensorDataset(torch.cat([x, x * 255]), torch.cat([y, y])), batch_size=32)
    evaluator = make_evaluator(trained, loader, torch.optim.Adam, 5e-3)
    distiller = PwoADistiller.from_compressor(
        NNI_PRUNERS[name][0](trained, evaluator), [], teacher_model=teacher, eps=0.1
    )
    with pytest.raises(ValueError, match=r"x: pixels reach from 0\.\d+ to 2\d\d"):
        distiller.compress(STEPS)
    assert distiller.evaluator.model is None
    distiller.unwrap_model()
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_what_fails_under_another_compressor_is_undone_too(trained: TinyNet, teacher: TinyNet, images: Pair) -> None:
    x, y = images
    loader = DataLoader(TensorDataset(torch.cat([x, x * 255]), torch.cat([y, y])), batch_size=32)
    evaluator = make_evaluator(trained, loader, torch.optim.Adam, 5e-3)
    agp = NNI_PRUNERS["AGP + Level"][0](trained, evaluator)
    distiller = PwoADistiller.from_compressor(agp, [], teacher_model=teacher, eps=0.1)
    qat = QATQuantizer.from_compressor(distiller, QUANTIZED)
    before = [parameter.detach().clone() for parameter in trained.parameters()]
    for length, said in ((15, "15 steps are over before AGPPruner"), (0, "max_steps=0"), (STEPS, "pixels reach from")):
        with pytest.raises(ValueError, match=said):
            qat.compress(length, None)
        assert qat.evaluator.model is None
        assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), before, strict=True))


class Stream(torch.utils.data.IterableDataset[Any]):
    """Nobody knows how long it is."""

    def __init__(self, images: Pair) -> None:
        self.images = images

    def __iter__(self) -> Any:
        return zip(*self.images, strict=True)


@pytest.mark.parametrize("name", ["AGP + Level", "Movement", "Taylor"])
def test_a_missed_target_is_logged(
    trained: TinyNet, teacher: TinyNet, images: Pair, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = make_evaluator(trained, DataLoader(Stream(images), batch_size=48), torch.optim.Adam, 5e-3)
    make = NNI_PRUNERS[name][0](trained, evaluator)
    distiller = PwoADistiller.from_compressor(make, [], teacher_model=teacher, eps=0.1)
    distiller.compress(max_epochs=1)
    kind, needed = type(make).__name__, 6 if name == "Taylor" else 16
    said = f"training ended at step 4, before {kind} had pruned to its target; compress again, with max_steps={needed} "
    assert said in caplog.text
    assert "no mask was made" not in caplog.text
    caplog.clear()
    distiller.compress(max_epochs=needed // 4 + 1)
    assert "training ended" not in caplog.text
    distiller.unwrap_model()
    assert sparsity(trained) == pytest.approx(0.5, abs=0.01)


def test_a_teacher_of_another_architecture(trained: TinyNet, images: Pair, evaluator: TorchEvaluator) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 32), nn.ReLU(), nn.Linear(32, 3)
    )
    optimizer = torch.optim.Adam(teacher.parameters(), lr=5e-3)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(teacher(images[0]), images[1]).backward()
        optimizer.step()
    agp = NNI_PRUNERS["AGP + Level"][0](trained, evaluator)
    distiller = PwoADistiller.from_compressor(agp, [{"op_types": ["Linear"]}], teacher_model=teacher, eps=0.1)
    distiller.compress(STEPS)
    assert set(distiller.terms) == {"distillation", "hsic_x", "hsic_y"}
    assert distiller.hidden_layers == ["fc1", "fc2"]
    distiller.unwrap_model()
    assert sparsity(trained) == pytest.approx(0.5, abs=0.01)


def test_a_nan_loss_raises(trained: TinyNet, teacher: TinyNet, images: Pair) -> None:
    loader = DataLoader(TensorDataset(*images), batch_size=32)
    evaluator = make_evaluator(trained, loader, lr=1e30)
    before = copy.deepcopy(trained.state_dict())
    with torch.no_grad():
        teacher.fc2.weight.mul_(0.5)  # a student equal to its teacher has no gradient
    with pytest.raises(TrainingError, match="not finite at step"):
        PwoADistiller(trained, [], evaluator, teacher, eps=0.1).compress(60)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
