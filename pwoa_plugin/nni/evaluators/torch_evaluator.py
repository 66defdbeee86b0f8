"""`make_evaluator`: NNI's TorchEvaluator with everything traced for the user."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sized
from contextlib import nullcontext
from itertools import islice
from typing import Any, Literal

import nni
import torch
from nni.compression import TorchEvaluator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils._pytree import tree_map

from ..._data import (
    as_labels,
    check_classes,
    dims,
    float_images,
    is_whole,
    refuse_no_batches,
    samples_of,
    tensor_of,
)
from ..._devices import dtype_of
from ..._logits import Output, check_output, logits_of, part_of
from ..._modes import modes_kept, single_image_explained, train_mode
from ..._network import check_trainable, naming_images
from ..._reading import retold
from ..._wrapped import network_or_ddp
from ...errors import InputError
from ..batch import TakeBatch, take_images_and_labels
from ..lengths import in_steps
from .optimizers import check_optimizer, refuse_sequential

#: From logits and labels to a scalar.
Loss = Callable[[Tensor, Tensor], Tensor]


def make_evaluator(
    model: nn.Module,
    train_loader: Iterable[Any],
    optimizer: type[Optimizer] | Optimizer = torch.optim.SGD,
    lr: float = 0.01,
    *,
    optimizer_options: Mapping[str, Any] | None = None,
    lr_scheduler: type[LRScheduler] | Callable[..., LRScheduler] | None = None,
    lr_scheduler_options: Mapping[str, Any] | None = None,
    lr_scheduler_interval: Literal["step", "epoch"] = "step",
    loss: Loss = F.cross_entropy,
    device: torch.device | str | None = None,
    take_batch: TakeBatch = take_images_and_labels,
    output: Output = None,
    evaluating_func: Callable[[nn.Module], float] | None = None,
    dummy_input: Any = None,
) -> TorchEvaluator:
    """An NNI evaluator that trains ``model`` on ``train_loader``: optimizer, scheduler and loop, traced as NNI needs.

    Args:
        model: the network, not wrapped by NNI.
        train_loader: batches, read again at every epoch.
        optimizer: a class of torch's, or an instance made by ``nni.trace``.
        lr: learning rate, if ``optimizer`` is a class.
        optimizer_options: its other arguments, ``{"momentum": 0.9}``.
        lr_scheduler: a class, or a function from the optimizer to a scheduler.
        lr_scheduler_options: its other arguments.
        lr_scheduler_interval: when the scheduler steps.
        loss: of logits and labels; under NNI's compressors it trains alone. PwoA's compressors leave it out unless
            ``origin_loss_lambda`` is above 0, and skip its forward if they are the outermost compressor and the others
            look at weights alone.
        device: where to train; the model is moved there now. None: where it is.
        take_batch: a function from a batch to ``(x, y)``; ``y`` may be None if a distiller brings its own loss. By
            default batches are read as "What data may be" in docs/runs.md says; the evaluator's own loss takes floats
            of any range, and scales uint8 to [0, 1].
        output: which part of what the model returns goes to ``loss``: an index, a key or an attribute. None: the part
            named ``logits``, or all of it; for the default loss the logits, by the rule of `PwoALoss`.
        evaluating_func, dummy_input: NNI's; see `TorchEvaluator`.

    Returns:
        A `TorchEvaluator`; its ``steps_per_epoch`` is the loader's length, None if that has none.

    Raises:
        InputError: NNI could not rebuild the optimizer or scheduler, or something else cannot be used.
    """
    check_trainable(model)
    if any(hasattr(module, "_nni_wrapper") for module in model.modules()):
        raise InputError("model is wrapped by a compressor; make the evaluator first, or call unwrap_model()")
    model = network_or_ddp(model)
    _check_loader(train_loader, take_batch)
    if lr_scheduler_interval not in ("step", "epoch"):
        raise InputError(f"lr_scheduler_interval={lr_scheduler_interval!r}; use 'step' or 'epoch'")
    if lr_scheduler_options and lr_scheduler is None:
        raise InputError("lr_scheduler_options go with lr_scheduler")
    if optimizer_options and not isinstance(optimizer, type):
        raise InputError("optimizer_options go with a class as optimizer")
    if device is not None:
        model.to(device)
    if isinstance(optimizer, type):
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        traced: Optimizer = nni.trace(optimizer)(parameters, **{"lr": lr, **(optimizer_options or {})})
    else:
        traced = optimizer
    check_optimizer(traced, model)

    step = _OwnLoss(loss, take_batch, check_output(output))
    training = _Training(train_loader, lr_scheduler_interval)
    made = _LoaderEvaluator(training, traced, step, None, dummy_input, evaluating_func)
    made.own_loss, made.take_batch = step, take_batch
    if lr_scheduler is not None:
        made.scheduler = _Scheduler(lr_scheduler, lr_scheduler_options or {})
    # Now, by the names of the parameters. NNI's compressors do so by identity when the first of them gets the
    # evaluator: if one wrapped the model before, the weights are new, and would never be trained.
    made._init_optimizer_helpers(model)
    return made


def _check_loader(loader: Any, take_batch: TakeBatch) -> None:
    """Refuse an empty loader, and images that are not in batches: a convolution takes single ones, too."""
    if _length(loader) == 0:
        raise InputError("train_loader is empty; give at least one batch of images")
    whole = is_whole(loader) and not (isinstance(loader, tuple) and len(loader) == 1)  # one batch of images
    samples = samples_of(loader)
    if whole or (samples is not None and (dims(take_batch(samples[0])[0]) or 0) < 4):
        raise InputError(
            f"train_loader is a {type(loader).__name__} of single images, or of all at once; put it into a DataLoader "
            "(with a TensorDataset if it is tensors)"
        )
    refuse_no_batches(loader, "train_loader")


def _length(loader: Iterable[Any]) -> int | None:
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader over a stream has a __len__ that raises
        return None


class _OwnLoss:
    """The training step: the evaluator's own loss, or 0 without a forward while ``counts`` is False."""

    def __init__(self, loss: Loss, take_batch: TakeBatch, output: Output) -> None:
        self.loss, self.take_batch, self.output, self.counts = loss, take_batch, output, True
        self.ran = False

    def __call__(self, batch: Any, model: nn.Module) -> Tensor:
        if self.counts:
            x, y = self.take_batch(batch)
            if y is not None:
                x, y = _pixels(x, model), _classes(y, model)
                with nullcontext() if self.ran else naming_images(x):  # later errors have other causes
                    answer = model(x.clone())  # a network may change its images in place
                self.ran = True
                if self.loss is F.cross_entropy:
                    logits = logits_of(answer, len(x), self.output)
                    if y.shape[1:] == (1,) or (y.dim() == 1 and y.is_floating_point()):
                        labels = as_labels(y, len(x), "train_loader")
                        check_classes(labels, logits.shape[1], "train_loader")
                        y = labels.classes
                    return self.loss(logits, y)
                return self.loss(part_of(answer, self.output), y)  # may want one logit, or several outputs
        return torch.zeros((), device=next(model.parameters()).device)


def _pixels(x: Any, model: nn.Module) -> Tensor:
    """Float images as they are, 8-bit ones scaled to [0, 1]; on the model's device, in its dtype."""
    return float_images(x, (0.0, 1.0), "train_loader").to(next(model.parameters()).device, dtype_of(model))


def _classes(y: Any, model: nn.Module) -> Tensor:
    """Labels as losses want them: integers as int64; on the model's device."""
    labels = tensor_of(y, "train_loader: labels")
    kept = labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
    return labels.to(next(model.parameters()).device, labels.dtype if kept else torch.int64)


class _Scheduler:
    """Makes a scheduler for each optimizer that NNI rebuilds."""

    def __init__(self, make: Callable[..., LRScheduler], options: Mapping[str, Any]) -> None:
        self.make, self.options = make, options

    def call(self, optimizer: Optimizer) -> LRScheduler:
        made = self.make(optimizer, **self.options)
        if not isinstance(made, LRScheduler):
            raise InputError(f"lr_scheduler gives a {type(made).__name__}; it must give a torch LRScheduler")
        refuse_sequential(made)
        return made


class _LoaderEvaluator(TorchEvaluator):
    """A `TorchEvaluator` that knows its loader and makes its scheduler by a function."""

    training_func: _Training
    own_loss: _OwnLoss
    take_batch: TakeBatch
    scheduler: _Scheduler | None = None

    @property
    def steps_per_epoch(self) -> int | None:
        return _length(self.training_func.loader)

    def _init_optimizer_helpers(self, pure_model: nn.Module) -> None:
        super()._init_optimizer_helpers(pure_model)
        if self.scheduler is not None:
            self.scheduler.call(self._optimizer_helpers[0].call(pure_model, None))  # refused now if it lacks an option
            self._lr_scheduler_helpers, self._lrs_opt_map = [self.scheduler], {0: 0}
            self._train_with_single_scheduler = True


class _Training:
    """The training loop."""

    def __init__(self, loader: Iterable[Any], scheduler_interval: str) -> None:
        self.loader, self.scheduler_interval = loader, scheduler_interval

    def __call__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        training_step: Callable[..., Tensor],
        lr_scheduler: LRScheduler | None = None,
        max_steps: int | None = None,
        max_epochs: int | None = None,
    ) -> None:
        if max_steps is None and max_epochs is None:
            raise InputError("give max_steps or max_epochs: this evaluator does not know how long to train")
        if isinstance(lr_scheduler, OneCycleLR):
            self._check_length(lr_scheduler, in_steps(max_steps, max_epochs, _length(self.loader)))
        device = next(model.parameters()).device
        step = epoch = 0
        with warnings.catch_warnings(), modes_kept(model):
            train_mode(model)
            # NNI's hooks around optimizer.step() hide its calls from schedulers.
            warnings.filterwarnings("ignore", "Seems like `optimizer.step", UserWarning)
            while epoch != max_epochs and step != max_steps:
                began = step
                batches = retold(iter(self.loader), "train_loader")
                for batch in islice(batches, None if max_steps is None else max_steps - step):
                    self._step(model, optimizer, training_step, _moved(batch, device))
                    step += 1
                    if lr_scheduler is not None and self.scheduler_interval == "step":
                        lr_scheduler.step()
                if step == began:
                    raise InputError("train_loader gives no batch; give one that can be read again at every epoch")
                epoch += 1
                if lr_scheduler is not None and self.scheduler_interval == "epoch":
                    lr_scheduler.step()

    @staticmethod
    def _step(model: nn.Module, optimizer: Optimizer, training_step: Callable[..., Tensor], batch: Any) -> None:
        optimizer.zero_grad()
        with single_image_explained():
            loss = training_step(batch, model)
        if not loss.requires_grad:
            raise InputError(
                "batches have no labels, so there is no loss to train by; give labels, or fuse PwoADistiller"
            )
        loss.backward()
        optimizer.step()

    def _check_length(self, scheduler: OneCycleLR, steps: int | None) -> None:
        """Refuse a OneCycleLR that is too short: it alone raises then, at the very end of training."""
        per_update = 1 if self.scheduler_interval == "step" else _length(self.loader)
        if steps is None or per_update is None:
            return
        wanted = -(-steps // per_update)
        if wanted > scheduler.total_steps:
            raise InputError(
                f"lr_scheduler: OneCycleLR(total_steps={scheduler.total_steps}) ends before this training of {wanted} "
                f"steps; give total_steps={wanted} or more"
            )


def _moved(batch: Any, device: torch.device) -> Any:
    return tree_map(lambda value: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value, batch)
