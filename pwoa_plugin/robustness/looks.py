"""Asking about the same images again: in other batches, in another order, and one by one.

What a classifier answers to an image depends on that image alone. One that normalises over the batch, answers by
position, remembers batches of one size or counts its calls answers otherwise here.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from .._text import one_line
from ..errors import InputError
from .alarm import Alarm, make_alarm
from .estimator import Logits, is_right, predict
from .images import Images
from .settings import JudgeSettings

_FEW = 32  # images that are asked about one by one, and clean ones among the attacked
_NOISE = 0.1  # of the median lead on clean images: above what int8 and other kernels do, below another answer
_ROUNDINGS = 8  # of the model's dtype, on its largest logit


class Looks:
    """Later looks at the images of one evaluation, and what they showed.

    An image is right if it is right in every look. Two looks whose logits differ by rounding alone count as one, so
    that rounding changes no verdict.

    Args:
        view: the model.
        images: all clean images.
        logits: of these, ``(N, classes)``, in the first look.
        settings: whose batch size is that of the first look and of the attacks, and whose seed is that of the order.
        gradients: whether to have gradients on where images are asked about one by one, as attacks have.

    Attributes:
        pace: seconds that an image took in the last look at many.
    """

    def __init__(
        self, view: Logits, images: Images, logits: Tensor, settings: JudgeSettings, *, gradients: bool
    ) -> None:
        self._view, self._images, self._logits, self._gradients = view, images, logits, gradients
        self._batch_size = settings.batch_size
        self._generator = torch.Generator().manual_seed(settings.seed)
        leads = _lead(logits, images.labels)[logits.isfinite().all(1)].abs()
        self._noise = _NOISE * float(leads.median()) if len(leads) else 0.0
        self._changed, self._silent = torch.zeros(2, len(logits), dtype=torch.bool)
        self.pace = 0.0

    def clean(self) -> Tensor:
        """Bool ``(N,)``: which clean images the model has right in the first look and in all others.

        Raises:
            InputError: the model does not take such batches.
        """
        return self._right(self._images.pixels, self._logits, torch.arange(len(self._logits)))

    def attacked(self, adversarial: Tensor, logits: Tensor, which: Tensor) -> Tensor:
        """Bool ``(N,)``: which images the model has right in all looks at what an attack made of them.

        A few clean images are asked about among them: what the model says to these must not have changed.

        Args:
            adversarial: ``(M, C, H, W)``.
            logits: of these, in the first look.
            which: ``(M,)`` int64, of which clean images they are versions.
        """
        few = which[torch.randperm(len(which), generator=self._generator)[:_FEW]]
        right = self._right(
            torch.cat([adversarial, self._images.pixels[few]]),
            torch.cat([logits, self._logits[few]]),
            torch.cat([which, few]),
        )
        whole = torch.zeros(len(self._logits), dtype=torch.bool)
        whole[which] = right[: len(which)]
        whole[few] &= right[len(which) :]
        return whole

    def _right(self, images: Tensor, logits: Tensor, which: Tensor) -> Tensor:
        labels = self._images.labels[which]
        right = is_right(logits, labels)
        self._silent[which[~logits.isfinite().all(1)]] = True

        def look(asked: Tensor, size: int) -> bool:
            """Look again; whether any answer differs."""
            again = self._ask(images[asked], size)
            changed = self._differ(logits[asked], again, labels[asked])
            right[asked] &= is_right(again, labels[asked]) | ~changed
            self._changed[which[asked[changed]]] = True
            self._silent[which[asked[~again.isfinite().all(1)]]] = True
            return bool(changed.any())

        order = torch.randperm(len(images), generator=self._generator)
        look(order, _other_size(min(self._batch_size, len(images))))
        if look(order[:_FEW], 1) and len(order) > _FEW:
            look(order[_FEW:], 1)  # where a few show that the batch matters, all are asked about alone
        return right

    def alarms(self) -> tuple[Alarm, ...]:
        """What the looks showed; empty for a model that answers each image for itself."""
        seen = {"batch-dependent": int(self._changed.sum()), "not-finite": int(self._silent.sum())}
        return tuple(make_alarm(name, count=count, n=len(self._changed)) for name, count in seen.items() if count)

    def _ask(self, images: Tensor, size: int) -> Tensor:
        began = time.perf_counter()
        try:
            logits = predict(self._view, images, size, gradients=self._gradients and size == 1)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(
                f"model takes images in batches of {min(self._batch_size, len(self._changed))} and not of {size} "
                f"({one_line(error)}); have it answer any number of images, each for itself"
            ) from error
        if size > 1:
            self.pace = (time.perf_counter() - began) / len(images)
        return logits

    def _differ(self, logits: Tensor, again: Tensor, labels: Tensor) -> Tensor:
        """Where the lead of the true class differs by more than rounding."""
        finite = logits.isfinite().all(1), again.isfinite().all(1)
        rounding = _ROUNDINGS * torch.finfo(self._view.dtype).eps * logits.abs().amax(1)
        moved = (_lead(logits, labels) - _lead(again, labels)).abs() > self._noise + rounding
        return torch.where(finite[0] & finite[1], moved, finite[0] != finite[1])


def _lead(logits: Tensor, labels: Tensor) -> Tensor:
    """The true logit less the largest other one."""
    true = labels.unsqueeze(1)
    return logits.gather(1, true).squeeze(1) - logits.scatter(1, true, -torch.inf).amax(1)


def _other_size(batch_size: int) -> int:
    """About two thirds and odd, since tricks and kernels look for round numbers; 2 in place of 1."""
    return 2 if batch_size == 1 else min((2 * batch_size // 3) | 1, batch_size - 1)
