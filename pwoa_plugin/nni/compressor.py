"""What `PwoAPruner` and `PwoADistiller` share as NNI compressors: wrapping, fusing, and a training."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from functools import partial
from typing import Any, Self

from nni.compression.base.compressor import Compressor
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from torch.utils.hooks import RemovableHandle

from ..errors import InputError
from ..masks import Masks
from ..method.restore import restored_on_error
from .batch import TakeBatch, take_images_and_labels
from .fusion import Train, at_next_training, check_fusion, own_loss_spared
from .lengths import check_counts, check_length, in_steps, steps_per_epoch
from .reporting import callbacks_for, reported
from .training import Training
from .wrappers import bake_masks, hook, is_on, read_parameters

_logger = logging.getLogger(__name__)


class PwoACompressor(Compressor):
    """A base before NNI's own, under which masks are in the weights themselves and PwoA's loss trains."""

    #: No two such compressors train together: the same terms would count twice.
    trains_with_pwoa = True
    #: Whether a bar or lines say how far a training by NNI's TorchEvaluator is.
    progress = True
    _training: Training | None = None
    _wrapped_here = False

    def _prepare(self, evaluator: Evaluator | None, take_batch: TakeBatch | None, origin_loss_lambda: float) -> None:
        """Called before NNI's constructor."""
        if not 0 <= origin_loss_lambda < math.inf:
            raise InputError(f"origin_loss_lambda={origin_loss_lambda!r}; give a number of at least 0")
        self.origin_loss_lambda = origin_loss_lambda  # weight of the evaluator's own loss
        known: TakeBatch = getattr(evaluator, "take_batch", take_images_and_labels)
        self.take_batch = take_batch or known
        self._hooks: list[RemovableHandle] = []

    @classmethod
    def from_compressor(
        cls, compressor: Compressor, new_config_list: Any, *args: Any, evaluator: Evaluator | None = None, **kwargs: Any
    ) -> Self:
        """A compressor over another one, on its model, wrappers and evaluator (see NNI's ``Compressor``).

        Raises:
            InputError: the other one also trains with PwoA, or would miss its sparsity; it is as it was.
        """
        check_fusion(compressor, cls.__name__)
        was_wrapped = compressor._is_wrapped
        try:
            made: Self = super().from_compressor(compressor, new_config_list, *args, evaluator=evaluator, **kwargs)
            return made
        except BaseException:
            if was_wrapped and not compressor._is_wrapped:
                compressor.wrap_model()
            raise

    # -- wrapping --------------------------------------------------------------------------------

    @property
    def _is_wrapped(self) -> bool:
        """NNI's flag; also False if another of the fused compressors has unwrapped the model since."""
        return self._wrapped_here and all(is_on(wrapper) for wrapper in self._module_wrappers.values())

    @_is_wrapped.setter
    def _is_wrapped(self, value: bool) -> None:
        self._wrapped_here = value

    @property
    def _taken_over(self) -> bool:
        """Whether a later compressor wraps the model."""
        return not self._is_wrapped and any(is_on(wrapper) for wrapper in self._module_wrappers.values())

    def wrap_model(self) -> None:
        """Wrap the layers as NNI does; their wrappers start from the model's current weights, with masks baked in."""
        if self._is_wrapped:
            return
        read_parameters(self._module_wrappers.values())
        self._bake()
        super().wrap_model()
        self._unhook()  # a wrapping that another compressor has ended leaves its hooks
        self._hooks = hook(self._module_wrappers.values())

    def unwrap_model(self) -> None:
        """Unwrap the layers, with masks baked into their weights; no effect if they are not wrapped."""
        if not self._is_wrapped:
            if self._taken_over:
                _logger.warning("a later compressor wraps the model; call that one's unwrap_model()")
            return
        self._unhook()
        self._bake()
        super().unwrap_model()

    def _unhook(self) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks = []

    def _bake(self) -> None:
        """Set the weights to 0 where masks are 0."""
        bake_masks(self._module_wrappers.values())

    def _wrappers(self) -> dict[str, ModuleWrapper]:
        """All wrappers in the model's order, including those of compressors that were fused later."""
        found = {
            name: getattr(module, "_nni_wrapper", None) or self._module_wrappers.get(name)
            for name, module in self.bound_model.named_modules()
        }
        return {name: wrapper for name, wrapper in found.items() if wrapper is not None}

    def get_masks(self) -> Masks:
        """Masks of all pruners that are fused, ``{module: {target: 0/1 tensor}}`` in the model's order.

        NNI's own are in a defaultdict, which `torch.load` refuses by default.
        """
        masks = {
            name: {target: space.mask.clone() for target, space in spaces.items() if space.mask is not None}
            for name, wrapper in self._wrappers().items()
            if (spaces := wrapper.pruning_target_spaces)
        }
        return {name: targets for name, targets in masks.items() if targets}

    # -- training --------------------------------------------------------------------------------

    def _refuse_taken_over(self) -> None:
        if self._taken_over:
            raise InputError("compress: a later compressor wraps the model; call its compress() or unwrap_model()")

    def _compress_by_evaluator(self, max_steps: int | None, max_epochs: int | None) -> None:
        """NNI binds the evaluator and calls `_fuse_preprocess`, the evaluator's ``train``, and `_fuse_postprocess`."""
        check_length(max_steps, max_epochs)
        self._refuse_taken_over()
        self.wrap_model()
        with own_loss_spared(self, self.origin_loss_lambda):
            self._fusion_compress(max_steps, max_epochs)

    def _fuse_preprocess(self, evaluator: Evaluator) -> None:
        """Add our loss when training starts, last, so that no other compressor weighs it."""
        at_next_training(evaluator, partial(self._train, evaluator))

    @abstractmethod
    def _begin(self, evaluator: Evaluator, max_steps: int | None, max_epochs: int | None) -> Training:
        """Prepare a training of that length; what cannot be done is refused here."""

    def _train(self, evaluator: Evaluator, train: Train, max_steps: int | None, max_epochs: int | None) -> None:
        """The evaluator's training with PwoA's loss."""
        with restored_on_error(self.bound_model, partial(self._undo, evaluator)):
            check_counts(max_steps, max_epochs)
            self._training = training = self._begin(evaluator, max_steps, max_epochs)
            evaluator.patch_loss(training.loss)
            evaluator.patch_optimizer_step(before_step_tasks=[], after_step_tasks=[training.after_step])
            steps = in_steps(max_steps, max_epochs, steps_per_epoch(evaluator, None))
            with reported(training, callbacks_for(evaluator, self.progress), steps, max_epochs):
                train(max_steps, max_epochs)
            training.finish()

    def _undo(self, evaluator: Evaluator) -> None:
        """After an error: free the evaluator for the next training."""
        evaluator.unbind_model()

    def _log_unmasked(self) -> None:
        """After a fused training: log layers that other compressors should have pruned, and have not."""
        unmasked = [
            name
            for name, wrapper in self._wrappers().items()
            for target, space in wrapper.pruning_target_spaces.items()
            if target not in self._target_spaces.get(name, ())
            and space.sparse_ratio
            and space.mask is not None
            and bool((space.mask == 1).all())
        ]
        if unmasked:
            _logger.warning(
                "no mask was made for %s: a pruner that makes one at once goes inside AGPPruner", ", ".join(unmasked)
            )
