"""`PwoAPruner` fused with NNI's other compressors: the sparsity asked for is in the final plain weights.

A new compressor is one row of `FUSED`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import nni
import pytest
import torch
from conftest import EVERY_STEP
from nni.compression.base.compressor import Compressor
from nni.compression.distillation import Adaptive1dLayerwiseDistiller, DynamicLayerwiseDistiller
from nni.compression.pruning import (
    AGPPruner,
    FPGMPruner,
    L1NormPruner,
    L2NormPruner,
    LevelPruner,
    LinearPruner,
    TaylorPruner,
)
from nni.compression.quantization import LsqQuantizer, PtqQuantizer, QATQuantizer
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin import PwoAConfig, PwoAPruner
from pwoa_plugin.errors import TrainingError
from pwoa_plugin.nni.fusion import prepare_evaluator, with_weighed_loss
from pwoa_plugin.nni.training import Training

from .conftest import ENTRIES, MakeEvaluator, Pair

LAYERS = ("conv", "fc1", "fc2")
QUANTIZED = [
    {
        "op_types": ["Conv2d", "Linear"],
        "target_names": ["_input_", "weight", "_output_"],
        "quant_dtype": "int8",
        "quant_scheme": "symmetric",
    }
]


def logits_of(batch: Any, model: nn.Module) -> Tensor:
    return model(batch[0])


def distil(kind: Any) -> Callable[[Compressor, nn.Module], Compressor]:
    def make(pruner: Compressor, teacher: nn.Module) -> Compressor:
        distiller = kind.from_compressor(pruner, [{"op_names": ["fc2"]}], copy.deepcopy(teacher), logits_of)
        distiller.track_forward(torch.rand(4, 1, 8, 8))
        return distiller

    return make


FUSED: dict[str, Callable[[Compressor, nn.Module], Compressor]] = {
    "alone": lambda pruner, _: pruner,
    "DynamicLayerwiseDistiller": distil(DynamicLayerwiseDistiller),
    "Adaptive1dLayerwiseDistiller": distil(Adaptive1dLayerwiseDistiller),
    "QATQuantizer": lambda pruner, _: QATQuantizer.from_compressor(pruner, QUANTIZED, quant_start_step=4),
    "PtqQuantizer": lambda pruner, _: PtqQuantizer.from_compressor(pruner, QUANTIZED),
    "LsqQuantizer": lambda pruner, _: LsqQuantizer.from_compressor(pruner, QUANTIZED),
}


def sparsity(model: nn.Module) -> dict[str, float]:
    return {name: float((model.get_submodule(name).weight == 0).float().mean()) for name in LAYERS}


@pytest.mark.parametrize("first", ["one after the other", "at once", "a PwoAConfig before"])
@pytest.mark.parametrize("fused", FUSED)
def test_the_sparsity_is_in_the_plain_weights(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator, fused: str, first: str
) -> None:
    teacher = copy.deepcopy(trained)
    if first == "a PwoAConfig before":
        if fused == "alone":
            pytest.skip("that is no fusion")
        fields = {"sparsity": 0.75, "allocation": "uniform", "epochs": 2, "eps": 0.1, "progress": False}
        pruner: Any = PwoAPruner(trained, PwoAConfig(train_loader=images, **fields))
        pruner.compress()
        pruner.evaluator = evaluator(trained, images)
    else:
        pruner = PwoAPruner(trained, ENTRIES, evaluator(trained, images), eps=0.1)
    masks = pruner.compress(18)[1] if first == "one after the other" else None
    if first == "a PwoAConfig before":
        masks = pruner.get_masks()
    compressor = FUSED[fused](pruner, teacher)
    compressor.compress(max_steps=18, max_epochs=None)
    answers = trained.eval()(images[0]).argmax(1)
    if fused.endswith("Quantizer"):
        for name in LAYERS:  # what the quantized forward used
            assert (trained.get_submodule(name).weight == 0).float().mean() >= 0.74
            assert trained.get_submodule(name)._nni_wrapper.weight_scale is not None
    compressor.unwrap_model()
    assert not any(hasattr(module, "_nni_wrapper") for module in trained.modules())
    assert sparsity(trained) == pytest.approx(dict.fromkeys(LAYERS, 0.75), abs=0.02)
    assert (trained(images[0]).argmax(1) == answers).float().mean() > 0.9  # quantized, or the same
    if masks is not None and fused != "alone":
        for name in LAYERS:
            assert torch.equal(trained.get_submodule(name).weight != 0, masks[name]["weight"].bool())
    assert (trained(images[0]).argmax(1) == images[1]).float().mean() > 0.8


@pytest.mark.parametrize("kind", [AGPPruner, LinearPruner])
@pytest.mark.parametrize("steps", [20, 23, 40])
@pytest.mark.parametrize("granularity", ["default", "out_channel", "1:4"])
def test_inside_a_scheduler(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator, kind: Any, steps: int, granularity: str
) -> None:
    entries = [{"op_names": ["conv", "fc1"], "sparse_ratio": 0.75 if granularity == "1:4" else 0.5}]
    entries[0]["granularity"] = granularity
    if granularity == "1:4":
        entries[0]["op_names"] = ["fc1"]
    ramp: list[tuple[int, float]] = []
    pruned_at: list[int] = []

    def look(*_: Any) -> None:
        training = pruner._training
        admm = getattr(training.schedule.phase, "admm", None)
        if admm is not None and admm.updates == len(ramp) + 1:
            ramp.append((training.step, float((admm.z["fc1"] == 0).float().mean())))
        if pruner._target.done:
            pruned_at.append(training.step)

    pruner = PwoAPruner(trained, entries, evaluator(trained, images, seen=look), eps=0.1)
    goal = entries[0]["sparse_ratio"]
    scheduler = kind(pruner, interval_steps=5, total_times=4)
    for _ in range(2):  # a second compress() keeps what is pruned
        scheduler.compress(steps, None)
    scheduler.unwrap_model()
    asked = [1 - (1 - i / 4) ** 3 if kind is AGPPruner else i / 4 for i in range(1, 5)]
    if granularity == "1:4":
        asked = [1.0] * 4
    expected = [(5 * i, goal * share) for i, share in enumerate(asked, 1)][: 4 if steps > 21 else 3]
    assert [step for step, _ in ramp] == [step for step, _ in expected]
    # Filters are few; at the last update all that is asked for is gone.
    assert [z for _, z in ramp] == pytest.approx([z for _, z in expected], abs=0.04)
    assert pruned_at[0] == {20: 20, 23: 21, 40: 25}[steps]
    assert float((trained.fc1.weight == 0).float().mean()) == pytest.approx(goal, abs=0.01)
    assert float((trained.fc2.weight == 0).float().mean()) == 0
    assert pruner.residual is not None
    assert (trained(images[0]).argmax(1) == images[1]).float().mean() > 0.8


def test_training_ends_before_a_scheduler_does(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator, caplog: pytest.LogCaptureFixture
) -> None:
    made = evaluator(trained, images)
    agp = AGPPruner(PwoAPruner(trained, ENTRIES, made, eps=0.1), interval_steps=5, total_times=4)
    before = copy.deepcopy(trained.state_dict())
    made.steps_per_epoch = 6
    for epochs, said in (
        (2, "12 steps are over before the scheduler's last update, at step 20; give max_steps=20 or more"),
        (0, "max_epochs=0; give an int of at least 1"),
    ):
        with pytest.raises(ValueError, match=f"^compress: {said}$"):
            agp.compress(None, epochs)
        assert made.model is None
        assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    del made.steps_per_epoch  # nobody can know
    agp.compress(None, 2)
    assert "training ended at step 12 of 20 of phase admm; pruned to the full sparsity" in caplog.text
    agp.unwrap_model()
    assert sparsity(trained) == pytest.approx(dict.fromkeys(LAYERS, 0.75), abs=0.02)


def test_a_scheduler_fused_with_a_distiller_and_then_quantized(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator
) -> None:
    teacher = copy.deepcopy(trained)
    agp = AGPPruner(PwoAPruner(trained, ENTRIES, evaluator(trained, images), eps=0.1), interval_steps=3, total_times=5)
    distiller = DynamicLayerwiseDistiller.from_compressor(agp, [{"op_names": ["fc2"]}], teacher, logits_of)
    distiller.compress(24, None)
    qat = QATQuantizer.from_compressor(distiller, QUANTIZED)
    qat.compress(6, None)
    qat.unwrap_model()
    assert sparsity(trained) == pytest.approx(dict.fromkeys(LAYERS, 0.75), abs=0.02)


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("newest", ["pruner", "distiller"])
def test_losses_of_others_are_added_whatever_their_order(
    trained: nn.Module,
    images: Pair,
    evaluator: MakeEvaluator,
    monkeypatch: pytest.MonkeyPatch,
    weight: float,
    newest: str,
) -> None:
    """Ours does not zero the distiller's, nor does a distiller's origin_loss_lambda=0 zero ours."""
    found: dict[str, list[float]] = {"user's": [], "distiller's": [], "ours": [], "all": []}

    def noted(name: str, loss: Tensor) -> Tensor:
        found[name].append(float(loss.detach()))
        return loss

    def user_step(batch: Any, model: nn.Module) -> Tensor:
        return noted("user's", F.cross_entropy(model(batch[0]), batch[1]))

    made = evaluator(trained, images, step=user_step, seen=lambda _, loss: noted("all", loss))
    teacher, distillation = copy.deepcopy(trained), [{"op_names": ["fc1"]}]
    if newest == "pruner":
        distiller: Any = DynamicLayerwiseDistiller(trained, distillation, made, teacher, logits_of, weight)
        outer: Any = PwoAPruner.from_compressor(distiller, ENTRIES, eps=0.1, **EVERY_STEP)
    else:
        pruner = PwoAPruner(trained, ENTRIES, made, eps=0.1, **EVERY_STEP)
        distiller = outer = DynamicLayerwiseDistiller.from_compressor(pruner, distillation, teacher, logits_of, weight)
    theirs, ours = distiller.compute_distill_loss, Training.loss
    distiller.compute_distill_loss = lambda: noted("distiller's", theirs())

    def loss(training: Training, others: Tensor, batch: Any) -> Tensor:
        return others + noted("ours", ours(training, torch.zeros(()), batch))

    monkeypatch.setattr(Training, "loss", loss)
    outer.compress(5, None)
    outer.unwrap_model()
    # The pruner's own origin_loss_lambda is 0; under a distiller's loss that one's counts.
    of_user = weight if newest == "distiller" else 0.0
    parts = zip(found["user's"], found["distiller's"], found["ours"], strict=True)
    assert found["all"] == pytest.approx([of_user * u + d + o for u, d, o in parts], rel=1e-5)
    assert min(found["distiller's"][1:]) > 0
    assert min(map(abs, found["ours"])) > 0


@pytest.mark.parametrize("kind", [LevelPruner, L1NormPruner, L2NormPruner, FPGMPruner])
def test_a_pruner_that_would_never_make_a_mask(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    idle = kind(trained, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    linear = [{"op_names": ["fc1"], "sparse_ratio": 0.5}]
    made = evaluator(trained, images)
    with pytest.raises(ValueError, match=f"{kind.__name__} has made no mask, and in a fusion it never will"):
        PwoAPruner.from_compressor(idle, linear, evaluator=made)
    agp = AGPPruner(idle, interval_steps=3, total_times=2, evaluator=made)
    pruner = PwoAPruner.from_compressor(agp, linear, eps=0.1)  # inside a scheduler it does
    pruner.compress(12)
    pruner.unwrap_model()
    assert float((trained.conv.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float((trained.fc1.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert "no mask was made" not in caplog.text
    pruner = PwoAPruner(trained, linear, evaluator(trained, images), eps=0.1)
    over = kind.from_compressor(pruner, [{"op_names": ["conv"], "sparse_ratio": 0.5}])  # which it cannot know before
    over.compress(1, None)
    over.unwrap_model()
    assert "no mask was made for conv: a pruner that makes one at once goes inside AGPPruner" in caplog.text


def test_beside_a_taylor_pruner(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    entry = {"op_names": ["conv"], "sparse_ratio": 0.5, "granularity": [1]}
    taylor = TaylorPruner(trained, [entry], evaluator(trained, images), training_steps=6)
    pruner = PwoAPruner.from_compressor(taylor, [{"op_types": ["Linear"], "sparse_ratio": 0.75}], eps=0.1)
    pruner.compress(18)
    pruner.unwrap_model()
    assert sparsity(trained) == pytest.approx({"conv": 0.5, "fc1": 0.75, "fc2": 0.75}, abs=0.02)


class OtherPwoA(DynamicLayerwiseDistiller):
    trains_with_pwoa = True


@pytest.mark.parametrize("scheduled", [False, True])
def test_pwoa_twice_is_refused(trained: nn.Module, images: Pair, evaluator: MakeEvaluator, scheduled: bool) -> None:
    pruner: Any = PwoAPruner(trained, [{"op_names": ["fc1"], "sparse_ratio": 0.5}], evaluator(trained, images))
    assert pruner.trains_with_pwoa
    if scheduled:
        pruner = AGPPruner(pruner, interval_steps=2, total_times=2)
    with pytest.raises(ValueError, match="PwoAPruner and PwoAPruner cannot be fused"):
        PwoAPruner.from_compressor(pruner, [{"op_names": ["fc2"], "sparse_ratio": 0.5}])
    pruner.unwrap_model()
    teacher = copy.deepcopy(trained)
    distiller = OtherPwoA(trained, [{"op_names": ["fc2"]}], evaluator(trained, images), teacher, logits_of)
    with pytest.raises(ValueError, match="PwoAPruner and OtherPwoA cannot be fused"):
        PwoAPruner.from_compressor(distiller, [{"op_names": ["fc1"], "sparse_ratio": 0.5}])
    assert distiller._is_wrapped  # as it was


def test_what_fails_in_a_fusion_leaves_model_and_evaluator_as_they_were(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator
) -> None:
    fail = {"after": 0}

    def step(batch: Any, model: nn.Module) -> Tensor:
        fail["after"] -= 1
        if fail["after"] == 0:
            raise RuntimeError("the loader broke")
        return model(batch[0]).sum()

    made = evaluator(trained, images, step=step)
    pruner = PwoAPruner(trained, ENTRIES, made, eps=0.1)
    qat = QATQuantizer.from_compressor(pruner, QUANTIZED)
    before = {name: tensor.detach().clone() for name, tensor in trained.named_parameters()}
    for after in (3, 16):  # before and after the hard prune
        fail["after"] = after
        with pytest.raises(RuntimeError, match="the loader broke"):
            qat.compress(18, None)
        assert all(torch.equal(tensor, before[name]) for name, tensor in trained.named_parameters())
        assert not any((mask == 0).any() for targets in pruner.get_masks().values() for mask in targets.values())
        assert made.model is None
        assert "train" not in made.__dict__
    qat.compress(18, None)
    qat.unwrap_model()
    assert sparsity(trained) == pytest.approx(dict.fromkeys(LAYERS, 0.75), abs=0.02)


def test_a_fusion_without_a_length_it_can_count(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    teacher, made = copy.deepcopy(trained), evaluator(trained, images)
    pruner = PwoAPruner(trained, ENTRIES, made, eps=0.1)
    distiller = DynamicLayerwiseDistiller.from_compressor(pruner, [{"op_names": ["fc2"]}], teacher, logits_of)
    with pytest.raises(ValueError, match="max_epochs needs steps_per_epoch"):
        distiller.compress(None, 3)
    made.steps_per_epoch = 6  # as make_evaluator's knows
    distiller.compress(None, 3)
    distiller.unwrap_model()
    assert sparsity(trained) == pytest.approx(dict.fromkeys(LAYERS, 0.75), abs=0.02)


def test_a_config_run_comes_before_the_fusion(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    config = PwoAConfig(sparsity=0.75, train_loader=images, epochs=2, eps=0.1, progress=False)
    qat = QATQuantizer.from_compressor(PwoAPruner(trained, config), QUANTIZED, evaluator=evaluator(trained, images))
    with pytest.raises(ValueError, match="call PwoAPruner's compress"):
        qat.compress(4, None)
    qat.unwrap_model()


def test_weights_that_the_optimizer_does_not_train_are_logged(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = nni.trace(torch.optim.Adam)(trained.fc2.parameters(), lr=1e-3)
    pruner = PwoAPruner(trained, ENTRIES, evaluator(trained, images, optimizer=optimizer), eps=0.1)
    assert "does not train conv.weight, fc1.weight; compressed" in caplog.text
    pruner.compress(8)
    pruner.unwrap_model()
    assert sparsity(trained) == pytest.approx(dict.fromkeys(LAYERS, 0.75), abs=0.02)


def test_an_optimizer_that_trains_no_weight_to_prune(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator
) -> None:
    optimizer = nni.trace(torch.optim.Adam)([trained.fc1.bias, *trained.fc2.parameters()], lr=1e-3)
    entry = {"op_names": ["conv", "fc1"], "sparse_ratio": 0.5, "target_names": ["weight"]}
    with pytest.raises(ValueError, match=r"trains none of the weights conv\.weight, fc1\.weight"):
        PwoAPruner(trained, [entry], evaluator(trained, images, optimizer=optimizer))
    assert not any(hasattr(module, "_nni_wrapper") for module in trained.modules())


@pytest.mark.parametrize("how", ["named_parameters", "another model's"])
def test_an_optimizer_that_would_train_nothing(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator, how: str
) -> None:
    owner = trained if how == "named_parameters" else copy.deepcopy(trained)
    parameters = owner.named_parameters() if how == "named_parameters" else owner.parameters()
    optimizer = nni.trace(torch.optim.Adam)(parameters, lr=1e-3)
    with pytest.raises(ValueError, match=r"trains none of the weights conv\.weight"):
        PwoAPruner(trained, ENTRIES, evaluator(trained, images, optimizer=optimizer))
    assert not any(hasattr(module, "_nni_wrapper") for module in trained.modules())


def test_a_nan_loss_in_a_fusion(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    optimizer = nni.trace(torch.optim.SGD)(trained.parameters(), lr=1e30)
    pruner = PwoAPruner(trained, ENTRIES, evaluator(trained, images, optimizer=optimizer), eps=0.1)
    before = copy.deepcopy(trained.state_dict())
    with pytest.raises(TrainingError, match="not finite"):
        PtqQuantizer.from_compressor(pruner, QUANTIZED).compress(30, None)
    after = trained.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items() if "_nni_wrapper.weight" in key)


def test_the_own_loss_is_weighed_before_all_others(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> None:
    given: list[Tensor] = []

    def patch(loss: Tensor, batch: Any) -> Tensor:
        given.append(loss.detach())
        return loss + 1

    losses: list[Tensor] = []
    made = evaluator(trained, images, seen=lambda model, loss: losses.append(loss), step=lambda b, m: m(b[0]).sum())
    prepare_evaluator(made, trained, [])
    weighed = with_weighed_loss(made, 1e-9)
    for _ in range(2):  # each time it is bound
        weighed.bind_model(trained, {name: name for name, _ in trained.named_parameters()})
        weighed.patch_loss(patch)
        weighed.patch_loss(patch)
        weighed.train(1, None)
        weighed.unbind_model()
    assert [float(loss) for loss in given] == pytest.approx([0, 1, 0, 1], abs=1e-6)
    assert [float(loss) for loss in losses] == pytest.approx([2, 2])
    assert made._training_step is made._ori_training_step
    assert made.model is None
