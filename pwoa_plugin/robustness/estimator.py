"""The ART estimator around a torch classifier, and what keeps the classifier unchanged meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, Self

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from .._logits import Output, logits_of, unused_note
from .._modes import modes_kept
from .._network import check_network
from ..errors import InputError
from ..models.normalisation import Normalisation
from .sharing import dealt


def model_device(model: nn.Module) -> torch.device:
    """Device of the model's first parameter or buffer; the CPU if it has none."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


class Logits(nn.Module):
    """A view of ``model`` that takes float32 images and returns float32 logits.

    Images are moved to the model's device and dtype, so a bf16 or fp16 model can be attacked. The model stays where it
    is: ``to`` and the like, which ART calls, do nothing here.

    Args:
        model: classifier; images ``(N, C, H, W)`` to logits ``(N, classes)``, in any form that `logits_of` takes.
        normalisation: ``(mean, std)`` by channel, where the model wants normalised images.
        output: which part of what the model returns has the logits; see `logits_of`.

    Attributes:
        n_forwards: how many images have gone through the model.
        note: on an ``output`` that has no effect; else empty.
        on_forward: called after each forward, unless it is None.
    """

    on_forward: Callable[[], None] | None = None

    def __init__(
        self,
        model: nn.Module,
        normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
        output: Output = None,
    ) -> None:
        super().__init__()
        self.model, self.output = model, output
        self.device = model_device(model)
        tensors = chain(model.parameters(), model.buffers())
        self.dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
        self.n_forwards, self.note = 0, ""
        self._normalise = None if normalisation is None else Normalisation(*normalisation)

    def forward(self, images: Tensor) -> Tensor:
        self.n_forwards += len(images)
        x = images.to(self.device).clone()  # a network may change its images in place
        if self._normalise is not None:
            (x,) = self._normalise(self.model, (x,))
        answer = self.model(x.to(self.dtype))
        logits = logits_of(answer, len(images), self.output).float()
        self.note = unused_note(answer, self.output)
        if self.on_forward is not None:
            self.on_forward()
        return logits

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        return self


def predict(view: Logits, images: Tensor, batch_size: int, *, gradients: bool = False) -> Tensor:
    """Logits ``(N, classes)``, float32, on the CPU; the batches are `dealt`.

    ``gradients``: whether the model is asked as attacks ask it, on images that need a gradient.
    """

    def answer(batch: Tensor) -> Tensor:
        with torch.set_grad_enabled(gradients):
            logits: Tensor = view(batch.clone().requires_grad_() if gradients else batch)
            return logits.detach().cpu()

    return torch.cat(dealt([partial(answer, batch) for batch in images.split(batch_size)], view))


def is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Bool ``(N,)``: where the largest logit is the label's. Logits of which one is infinite or NaN are no answer."""
    right: Tensor = (logits.argmax(1) == labels) & logits.isfinite().all(1)
    return right


def input_gradients(view: nn.Module, images: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Gradient of a loss of the logits with respect to the images, on the CPU; None where none reaches them."""
    x = images.clone().requires_grad_()
    try:
        with torch.enable_grad():
            value = loss(view(x))
            (gradient,) = torch.autograd.grad(value, x, allow_unused=True) if value.requires_grad else (None,)
            return None if gradient is None else gradient.cpu()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # numpy in the forward, or an operation without a derivative
        return None


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode and without parameter gradients; all is restored afterwards, also after an error.

    Restored are the training flag of every submodule and ``requires_grad`` and ``grad`` of every parameter (the same
    ``grad`` tensor, not a copy). Inside, only the images are differentiated, which is faster.
    """
    leaves = [t for t in chain(model.parameters(), model.buffers()) if t.is_leaf]
    gradients = [(leaf, leaf.requires_grad, leaf.grad) for leaf in leaves]
    try:
        with modes_kept(model):
            model.eval()
            for leaf in leaves:
                leaf.grad = None
                leaf.requires_grad_(False)
            yield model
    finally:
        for leaf, requires_grad, grad in gradients:
            leaf.requires_grad_(requires_grad)
            leaf.grad = grad


@contextmanager
def placed(model: nn.Module, device: torch.device | None) -> Iterator[None]:
    """The model on ``device``, and back on its own afterwards. None leaves it where it is."""
    homes = {tensor.device for tensor in chain(model.parameters(), model.buffers())}
    if device is None or homes <= {torch.empty(0, device=device).device}:
        yield
        return
    if len(homes) > 1:
        spread = ", ".join(sorted(map(str, homes)))
        raise InputError(f"device={str(device)!r}: the model is spread over {spread}; leave device out")
    (home,) = homes
    try:
        model.to(device)
        yield
    finally:
        model.to(home)


def make_estimator(
    model: nn.Module,
    *,
    n_classes: int,
    input_shape: tuple[int, ...],
    pixel_range: tuple[float, float] = (0.0, 1.0),
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    loss: nn.Module | None = None,
) -> PyTorchClassifier:
    """ART classifier around ``model``, on the device where the model is.

    Args:
        model: classifier; images ``(N, C, H, W)`` to logits ``(N, n_classes)``. Any floating dtype. A `Logits` is
            used unchanged.
        n_classes: number of logits.
        input_shape: shape of one image, ``(C, H, W)``.
        pixel_range: ``(low, high)`` of a valid image; attacks clip to it.
        normalisation: ``(mean, std)`` by channel, where the model wants normalised images.
        loss: loss that attacks ascend, of logits and labels; cross-entropy by default.

    Returns:
        An `art.estimators.classification.PyTorchClassifier` whose images and logits are float32.
    """
    check_network(model)
    logits = model if isinstance(model, Logits) else Logits(model, normalisation)
    estimator = PyTorchClassifier(
        model=logits,
        loss=nn.CrossEntropyLoss() if loss is None else loss,
        input_shape=input_shape,
        nb_classes=n_classes,
        clip_values=pixel_range,
        preprocessing=None,
        device_type="cpu",
    )
    # ART knows "cpu" and the current CUDA device only, and moves the model there.
    estimator._device = logits.device
    return estimator


def twin_of(estimator: PyTorchClassifier, kind: type[PyTorchClassifier], **changed: Any) -> PyTorchClassifier:
    """A second estimator on the same model, of the class ``kind``."""
    twin = object.__new__(kind)  # copy.copy would write the model to a file and read it again
    vars(twin).update(vars(estimator), **changed)
    return twin
