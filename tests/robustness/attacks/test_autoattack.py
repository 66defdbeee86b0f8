from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import numpy as np
import pyautoattack
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from art.exceptions import EstimatorError
from torch import Tensor, nn

from pwoa_plugin.robustness import AutoAttack, StandardAutoAttack, evaluate, make_estimator
from pwoa_plugin.robustness.attacks.autoattack import _Affine, _dynamic_check_contained

Digits = Callable[[int], tuple[Tensor, Tensor]]
Models = Callable[[int], nn.Module]


def art_classifier(model: nn.Module, n_classes: int, **arguments: object) -> PyTorchClassifier:
    """What a user of ART has, made without this package."""
    return PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=n_classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
        **arguments,
    )


def test_verdicts_and_images_are_those_of_pyautoattack_itself(make_model: Models, digits: Digits) -> None:
    eps, queries = 0.18, 500
    images, labels = (part[-20:] for part in digits(10))
    model = make_model(10)
    attack = AutoAttack(queries=queries)
    report = evaluate(model, (images, labels), eps=eps, attacks=attack, batch_size=15, seed=3, progress=False)
    wrapped = StandardAutoAttack(art_classifier(model, 10), eps=eps, batch_size=15, seed=3)
    model.eval()
    direct = pyautoattack.AutoAttack(model, norm="Linf", eps=eps, version="standard", seed=3, device="cpu")
    assert wrapped.queries == direct.square.n_queries == AutoAttack().queries
    wrapped.queries = direct.square.n_queries = queries
    found = wrapped.generate(images.numpy(), np.eye(10)[labels.numpy()])
    with _dynamic_check_contained():
        expected, answers = direct.run_standard_evaluation(images, labels, batch_size=15)
    assert np.array_equal(found, expected.numpy())
    assert torch.equal(report.attacks["AutoAttack"].robust, answers == labels)
    assert not report.notes
    assert 2 < report.attacks["AutoAttack"].n_robust < int(report.clean_correct.sum()) - 5


def test_square_works_where_the_logits_are_the_images_themselves() -> None:
    """Square writes into the logits it gets."""
    images = torch.tensor([0.42, 0.5, 0.25]).repeat(8, 1).view(8, 1, 1, 3)
    labels = torch.ones(8, dtype=torch.int64)
    attack = StandardAutoAttack(make_estimator(nn.Flatten(), n_classes=3, input_shape=(1, 1, 3)), eps=0.1)
    with _dynamic_check_contained():
        found, answers = attack._runner(_Affine((0, 1)), ("square",)).run_standard_evaluation(images, labels)
    assert not (answers == labels).any()
    assert torch.equal(found.flatten(1).argmax(1), answers)


@pytest.mark.parametrize("pixel_range", [(0.0, 255.0), (-1.0, 1.0)])
def test_another_pixel_range_is_no_harder(make_model: Models, digits: Digits, pixel_range: tuple[float, float]) -> None:
    images, labels = (part[-40:] for part in digits(5))
    low, high = pixel_range

    class Rescaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_model(5)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inner((x - low) / (high - low))
            return logits

    plain = evaluate(make_model(5), (images, labels), eps=0.25, attacks="AutoAttack", progress=False)
    other = evaluate(
        Rescaled(),
        (images * (high - low) + low, labels),
        eps=0.25 * (high - low),
        pixel_range=pixel_range,
        attacks="AutoAttack",
        progress=False,
    )
    assert other.clean == plain.clean > 0.8
    assert other.worst_case.accuracy == plain.worst_case.accuracy == 0


@pytest.mark.parametrize(("n_classes", "runs_targeted_dlr"), [(2, False), (3, False), (4, True), (5, True)])
def test_fewer_classes_than_ten(
    make_model: Models,
    digits: Digits,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    n_classes: int,
    runs_targeted_dlr: bool,
) -> None:
    images, labels = (part[-40:] for part in digits(n_classes))
    report = evaluate(
        make_model(n_classes),
        (images, labels),
        eps=0.4,
        attacks=["PGD-20", "AutoAttack"],
        progress=False,
    )
    parameters = report.config.attacks["AutoAttack"]
    assert parameters["n_target_classes"] == n_classes - 1
    assert ("apgd-t" in parameters["attacks"]) is runs_targeted_dlr
    left_out = [note for note in report.notes if "apgd-t left out" in note and f"has {n_classes}" in note]
    assert len(left_out) == (0 if runs_targeted_dlr else 1)
    assert not [note for note in report.notes if "target classes" in note or "not possible" in note]
    assert report.attacks["AutoAttack"].n_robust <= report.attacks["PGD-20"].n_robust
    assert report.attacks["AutoAttack"].n_robust < int(report.clean_correct.sum())
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name == "auto-attack"]
    assert not recwarn.list


def test_warnings_of_pyautoattack_become_notes_and_nothing_else(
    make_model: Models, digits: Digits, caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = (part[-20:] for part in digits(5))
    model = nn.Sequential(make_model(5), nn.Softmax(1))
    attack = StandardAutoAttack(make_estimator(model, n_classes=5, input_shape=(1, 8, 8)), eps=0.5)
    logging.getLogger("auto-attack").setLevel(logging.NOTSET)
    attack.generate(images.numpy(), labels.numpy())
    assert [note for note in attack.notes if "output is a probability distribution" in note]
    assert not [note for note in attack.notes if "flags_doc" in note]
    assert not [record for record in caplog.records if record.name == "auto-attack"]


def test_it_composes_with_art(make_model: Models, digits: Digits, eps: float) -> None:
    """On a user's own ART classifier, normalising in ART, after another ART attack, without labels."""
    images = digits(5)[0][-12:].numpy()
    model = make_model(5)
    modes = [module.training for module in model.modules()]
    classifier = art_classifier(model, 5, preprocessing=(0.1, 0.8))
    attack = StandardAutoAttack(classifier, eps=3 * eps)
    attack.set_params(eps=4 * eps)
    answers = classifier.predict(images).argmax(1)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    found = attack.generate(images)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert np.abs(found - images).max() <= 4 * eps + 1e-6
    assert (classifier.predict(found).argmax(1) != answers).mean() > 0.5
    chained = ProjectedGradientDescent(classifier, eps=eps, max_iter=2, verbose=False).generate(found)
    assert chained.shape == images.shape
    assert "eps=0.4" in repr(attack)


def test_a_tracer_survives(make_model: Models, digits: Digits) -> None:
    images, labels = (part[-2:] for part in digits(5))
    attack = StandardAutoAttack(make_estimator(make_model(5), n_classes=5, input_shape=(1, 8, 8)), eps=1.0)

    def tracer(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        attack.generate(images.numpy(), labels.numpy())
        after = sys.gettrace()
    finally:
        sys.settrace(before)
    assert after is tracer


@pytest.mark.parametrize(
    ("arguments", "message"), [({"eps": 0}, "eps=0 "), ({"eps": 0.1, "batch_size": 0}, "batch_size=0 ")]
)
def test_bad_parameters_are_refused(make_model: Models, arguments: dict[str, float], message: str) -> None:
    estimator = make_estimator(make_model(5), n_classes=5, input_shape=(1, 8, 8))
    with pytest.raises(ValueError, match=rf"^{message}.*; give"):
        StandardAutoAttack(estimator, **arguments)  # type: ignore[arg-type]


def test_a_mask_is_refused_and_so_is_an_estimator_that_is_no_torch_classifier(
    make_model: Models, digits: Digits
) -> None:
    estimator = make_estimator(make_model(5), n_classes=5, input_shape=(1, 8, 8))
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        StandardAutoAttack(estimator).generate(digits(5)[0][:2].numpy(), mask=np.ones((1, 8, 8)))
    with pytest.raises(EstimatorError):
        StandardAutoAttack(object())
