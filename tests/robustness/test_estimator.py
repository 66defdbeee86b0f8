from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin.robustness import CarliniWagnerMargin, make_estimator, undisturbed
from pwoa_plugin.robustness.estimator import Logits, twin_of


def test_estimator_predicts_the_models_logits_within_the_pixel_range(
    model: nn.Module, held_out: tuple[Tensor, Tensor]
) -> None:
    images = held_out[0][:20]
    estimator = make_estimator(model, n_classes=10, input_shape=(1, 8, 8), pixel_range=(-1.0, 2.0))
    predicted = estimator.predict(images.numpy())
    model.eval()
    with torch.no_grad():
        np.testing.assert_allclose(predicted, model(images).numpy(), rtol=1e-5, atol=1e-6)
    assert tuple(estimator.clip_values) == (-1.0, 2.0)


def test_art_cannot_move_or_cast_the_model(model: nn.Module) -> None:
    view = Logits(model)
    view.double()
    view.to("meta")
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cpu", torch.float32)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_any_dtype_gives_float32_logits_and_float32_gradients(
    model: nn.Module, held_out: tuple[Tensor, Tensor], dtype: torch.dtype
) -> None:
    images = held_out[0][:4].clone().requires_grad_()
    logits = Logits(model.eval().to(dtype))(images)
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert logits.dtype == gradient.dtype == torch.float32
    assert gradient.abs().sum() > 0


def test_a_twin_ascends_another_loss_on_the_same_model(model: nn.Module, held_out: tuple[Tensor, Tensor]) -> None:
    images, labels = held_out[0][:6], held_out[1][:6]
    first = make_estimator(model, n_classes=10, input_shape=(1, 8, 8))
    second = twin_of(first, type(first), _loss=CarliniWagnerMargin(), _reduce_labels=False)
    model.eval()
    x = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(CarliniWagnerMargin()(model(x), labels), x)
    one_hot = np.eye(10, dtype=np.float32)[labels.numpy()]
    np.testing.assert_allclose(second.loss_gradient(images.numpy(), one_hot), expected.numpy(), atol=1e-6)
    assert not np.allclose(first.loss_gradient(images.numpy(), one_hot), expected.numpy(), atol=1e-6)
    assert second.model is first.model


@pytest.mark.parametrize("fails", [False, True])
def test_undisturbed_gives_modes_and_gradients_back(model: nn.Module, fails: bool) -> None:
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.full_like(parameters[1], 3.0)
    modes = [module.training for module in model.modules()]
    grads = [p.grad for p in parameters]
    assert True in modes
    assert False in modes
    try:
        with undisturbed(model):
            assert not any(module.training for module in model.modules())
            model(torch.rand(2, 1, 8, 8, requires_grad=True)).sum().backward()
            assert all(p.grad is None for p in parameters)
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in parameters] == [False] + [True] * (len(parameters) - 1)
    assert all(p.grad is g for p, g in zip(parameters, grads, strict=True))
    assert torch.equal(parameters[1].grad, torch.full_like(parameters[1], 3.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_the_cpu_stays_there_where_there_is_a_gpu(make_model: Callable[[int], nn.Module]) -> None:
    model = make_model(10)
    estimator = make_estimator(model, n_classes=10, input_shape=(1, 8, 8))
    assert estimator.device.type == "cpu"
    assert {p.device.type for p in model.parameters()} == {"cpu"}
