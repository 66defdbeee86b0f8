"""`PwoAPruner`: the door into NNI 3.0."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Unpack

from nni.compression.base.compressor import Pruner
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from torch import nn

from .._network import check_trainable
from .._notebook import Allocations, History
from .._wrapped import network_or_ddp
from ..config import PwoAConfig
from ..errors import InputError
from ..masks import Masks, bake, check_masks
from ..method.allocation import allocation_table
from ..method.callback import Callback
from ..method.phases import Phase
from .batch import TakeBatch
from .by_config import ByConfig
from .by_evaluator import ByEvaluator
from .compressor import PwoACompressor
from .fusion import loss_is_patched, weighing
from .lengths import in_steps, steps_per_epoch
from .options import ListOptions
from .target import SpaceTarget
from .training import Training
from .wrappers import bake_masks, is_on, read_parameters, sync_buffers

_logger = logging.getLogger(__name__)


class PwoAPruner(PwoACompressor, Pruner):
    """Prune an adversarially robust network without adversarial examples (PwoA, arXiv 2210.04311).

    Two ways of use:

    * ``PwoAPruner(model, PwoAConfig(...)).compress()`` trains by itself and returns the user's own module, not
      wrapped, with the masks baked into its weights; parameters stay the same objects.
    * ``PwoAPruner(model, config_list, evaluator).compress(max_steps, max_epochs)`` is an NNI pruner like NNI's own: the
      evaluator trains, the model stays wrapped until `unwrap_model`.

    The frozen teacher is the network as it is when the pruner is made, unless ``teacher_model`` is given; a second
    ``compress()`` continues from the pruned weights, with the same teacher. With ``from_compressor`` it is the
    network with the masks that the other compressor has made.

    Fused with NNI's other compressors (``from_compressor``, in either order), its loss is added to theirs. A pruner
    that has pruned already keeps its masks then and only fine-tunes: this way one prunes, then quantizes. Inside
    ``AGPPruner`` and ``LinearPruner`` their updates are the dual updates. Masks are in the wrappers' own weights, so
    that ``unwrap_model``, ``state_dict`` and copies agree. With granularity ``out_channel`` the constants of dead
    filters (bias, BatchNorm) are held at zero, too, so that `speedup` removes the filters without changing the output.

    Args:
        model: the robust network: images ``(N, C, H, W)`` to logits ``(N, classes)``.
        config_list: a `PwoAConfig`, or NNI's list of dicts; there, an entry may name its own ``allocation``
            (``{"op_types": ["Linear"], "sparse_ratio": 0.9, "allocation": "uniform"}``), and ``granularity`` also takes
            our names (``column``, ``block:4x4``, ``2:4``). The argument's name is NNI's.
        evaluator: NNI's; with a list only.
        existed_wrappers: NNI's; ``from_compressor`` passes it.
        callbacks: notified of the progress of a `PwoAConfig` run, beside its progress bar.
        take_batch: a function from the evaluator's batch to ``(x, y)``; that of `make_evaluator` unless given.
        **options: with a list; see `ListOptions`.

    Attributes:
        history: of the last `PwoAConfig` run, a dict per epoch.
        radius: of the perturbation in the last run, in pixel units.
        residual: ADMM's primal residual at its end.
        interval_steps, total_times: set by a scheduler: steps between its updates, and how many; -1 without one.

    Raises:
        InputError: one line that says what cannot be used; the model is as it was.
    """

    def __init__(
        self,
        model: nn.Module,
        config_list: PwoAConfig | list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        *,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        callbacks: Sequence[Callback] = (),
        take_batch: TakeBatch | None = None,
        **options: Unpack[ListOptions],
    ) -> None:
        # Everything that can be refused is refused before NNI touches the model.
        check_trainable(model)
        self._given = model
        model = network_or_ddp(model)
        of_list = {"evaluator": evaluator, "existed_wrappers": existed_wrappers}
        given = [*options, *(name for name, value in of_list.items() if value is not None)]
        if given and isinstance(config_list, PwoAConfig):
            raise InputError(
                f"{', '.join(given)}: not with a PwoAConfig, whose run trains by itself; give it NNI's config_list, or "
                "a plain model"
            )
        if any(hasattr(module, "_nni_wrapper") for module in model.modules()):
            raise InputError(
                "model is wrapped by another compressor; use PwoAPruner.from_compressor(it, ...), or call its "
                "unwrap_model()"
            )
        self._prepare(evaluator, take_batch, options.pop("origin_loss_lambda", 0.0))
        self.steps_per_epoch = options.pop("steps_per_epoch", None)
        self.progress = options.pop("progress", True)
        if isinstance(config_list, PwoAConfig):
            self._strategy: ByConfig | ByEvaluator = ByConfig(model, config_list, callbacks)
            model = self._strategy.trainer.network
        else:
            steps_per_epoch(evaluator, self.steps_per_epoch)
            self._strategy = ByEvaluator(model, config_list, evaluator, existed_wrappers or {}, options)
        self.interval_steps, self.total_times = -1, 1
        self.history = History()
        self.radius: float | None = None
        self.residual: float | None = None
        self._anew = False  # whether the training to come prunes again what is pruned already
        self._may_wrap = isinstance(self._strategy, ByEvaluator)
        super().__init__(model, self._strategy.entries, evaluator, existed_wrappers)
        self._may_wrap = True
        self._target = SpaceTarget(
            model, self._strategy.parameters, self._target_spaces, reference=self._strategy.loss.teacher
        )

    @property
    def teacher(self) -> nn.Module:
        """The frozen robust network that the loss compares the pruned one with."""
        return self._strategy.loss.teacher

    @property
    def allocation(self) -> Allocations:
        """``{layer: LayerAllocation}``: what each layer keeps; gradual pruning decides it at the hard prune."""
        return Allocations(self._target.allocation)

    # -- compress --------------------------------------------------------------------------------

    def compress(self, max_steps: int | None = None, max_epochs: int | None = None) -> tuple[nn.Module, Masks]:
        """Prune.

        Args:
            max_steps: with NNI's list: optimizer steps to train.
            max_epochs: with NNI's list: epochs to train; the steps of one come from the evaluator, or
                ``steps_per_epoch``.

        Returns:
            The user's model and its masks, ``{module: {target: 0/1 tensor}}``.

        Raises:
            InputError: arguments, data or model cannot be used.
            TrainingError: the loss is not finite. Whatever is raised, the weights are as they were.
        """
        if isinstance(self._strategy, ByConfig):
            if max_steps is not None or max_epochs is not None:
                raise InputError(
                    "compress: a PwoAConfig says how long to train (epochs); call compress() without arguments"
                )
            self._refuse_taken_over()
            self.unwrap_model()  # NNI's wrappers empty the GPU's cache at every forward
            self._strategy.run(self._target)
            trainer = self._strategy.trainer
            self.history, self.radius = History(trainer.history), trainer.radius
            self.residual = trainer.residual
        else:
            self.interval_steps, self.total_times = -1, 1  # no scheduler has called this
            self._anew = True
            try:
                self._compress_by_evaluator(max_steps, max_epochs)
            finally:
                self._anew = False
        return self._given, self.get_masks()

    # -- NNI's life cycle of a training ----------------------------------------------------------

    def _fuse_preprocess(self, evaluator: Evaluator) -> None:
        if not loss_is_patched(evaluator):
            evaluator.patch_loss(weighing(self.origin_loss_lambda))
        super()._fuse_preprocess(evaluator)

    def _undo(self, evaluator: Evaluator) -> None:
        super()._undo(evaluator)
        self._target.undo()
        self._end()

    def _begin(self, evaluator: Evaluator, max_steps: int | None, max_epochs: int | None) -> Training:
        target, strategy = self._target, self._strategy
        training = Training(self.bound_model, strategy.loss, self.take_batch)
        phases: list[Phase] = []
        per_epoch = steps_per_epoch(evaluator, self.steps_per_epoch)
        steps = in_steps(max_steps, max_epochs, per_epoch)
        training.count_epochs(steps, per_epoch)
        if self._anew or not target.done:
            scheduler = (self.interval_steps, self.total_times) if self.interval_steps > 0 else None
            phases = strategy.phases(target, steps, per_epoch, scheduler=scheduler, check=training.check)
            _logger.info("allocation\n%s", allocation_table(self.allocation))
            target.scheduled = scheduler is not None
            target.begin()
        training.follow(target, phases)
        return training

    def _fuse_postprocess(self, evaluator: Evaluator) -> None:
        assert self._training is not None
        assert self._training.schedule is not None
        self._target.hold()
        sync_buffers(self._module_wrappers.values())
        self._log_unmasked()
        self.radius = self._strategy.loss.radius
        residual = self._training.schedule.residual
        self.residual = self.residual if residual is None else residual
        self._end()

    def _end(self) -> None:
        self._training = None
        self.interval_steps, self.total_times = -1, 1  # a scheduler sets these again each time it begins
        self._target.end()

    # -- NNI's life cycle of masks ---------------------------------------------------------------

    def wrap_model(self) -> None:
        """See `PwoACompressor`; NNI's constructor, which calls this too, does not wrap for a `PwoAConfig`."""
        if self._may_wrap:
            super().wrap_model()

    def _validate_config(self) -> None:
        """`read_config_list` has checked it, before the model is touched."""

    def _register_scalers(self) -> None:
        """Masks come from our sparsity sets, not from NNI's scalers."""

    def update_masks(self, masks: Masks) -> None:
        """Take masks, such as `load_masks` reads: they are baked into the weights, and the layers count as pruned.

        Raises:
            InputError: they are another model's, of layers that this pruner does not prune, or, unless it has pruned
                them before, not of all layers that it prunes.
        """
        masks = check_masks(self.bound_model, masks)
        wrappers = self._module_wrappers
        for name, targets in masks.items():
            spaces = wrappers[name].pruning_target_spaces if name in wrappers else {}
            if unknown := [target for target in targets if target not in spaces]:
                raise InputError(f"masks: {name}.{unknown[0]} is not pruned here; config_list does not select it")
        selected = [(each.module, each.name) for each in self._strategy.parameters.values()]
        missing = [f"{name}.{target}" for name, target in selected if masks.get(name, {}).get(target) is None]
        if missing and not self._target.done:
            raise InputError(
                f"masks: no mask for {missing[0]}, which config_list selects; give masks of all layers, or select fewer"
            )
        super().update_masks(masks)
        if not any(is_on(wrapper) for wrapper in wrappers.values()):
            read_parameters(wrappers.values())
            bake(self.bound_model, masks)
        bake_masks(wrappers.values())
        sync_buffers(wrappers.values())
        self._target.count_as_pruned()

    def generate_masks(self) -> Masks:
        """Masks by the current weights, which are not applied; the projection needs no metrics of NNI's."""
        return self._target.make_masks()
