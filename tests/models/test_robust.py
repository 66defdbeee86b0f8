from __future__ import annotations

from pwoa_plugin import evaluate
from pwoa_plugin.data import mnist_sample
from pwoa_plugin.models import robust_lenet


def test_shipped_lenet_is_robust_on_images_it_never_saw() -> None:
    model = robust_lenet()
    assert not model.training
    x, y = mnist_sample()[1].tensors
    report = evaluate(model, (x[:200], y[:200]), eps=0.3, attacks=("FGSM", "PGD-20"), progress=False)
    assert report.clean > 0.95
    assert report.worst_case.accuracy > 0.85
