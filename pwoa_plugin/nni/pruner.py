"""`PwoAPruner`: the door into NNI 3.0."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from nni.compression.base.compressor import Compressor, Pruner
from nni.compression.base.target_space import PruningTargetSpace, TargetType
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .._random import seeded
from .._section import as_section
from .._weights import is_weighted
from ..config import ADMMConfig, DistillationConfig, GradualConfig, HSICConfig, PerturbationConfig, PwoAConfig
from ..errors import InputError
from ..masks import Masks, check_masks
from ..method.allocation import LayerAllocation, allocation_table
from ..method.callback import Callback
from ..method.constants import dead_constants, links
from ..method.distillation import frozen_copy
from ..method.gradual import Budget
from ..method.loss import PwoALoss
from ..method.sparsity import Filter
from ..method.targets import MaskTarget
from ..method.trainer import Trainer
from .batch import TakeBatch, take_batch_of
from .config_list import Target, read_config_list, register_settings
from .fusion import (
    Train,
    at_next_training,
    check_optimizers,
    loss_is_patched,
    own_loss_spared,
    refuse_idle_pruners,
    refuse_pwoa_twice,
    undone_on_error,
    weighing,
)
from .training import (
    Plan,
    Training,
    check_count,
    check_counts,
    check_length,
    check_weight,
    plan_alone,
    plan_scheduled,
)
from .wrappers import Baking, bake, is_on, live_parameter, masked_copy, read_parameters, refuse_taken_over, settle

__all__ = ["PwoAPruner"]

_logger = logging.getLogger(__name__)


class PwoAPruner(Baking, Pruner):
    """Prune an adversarially robust network without adversarial examples (PwoA, arXiv 2210.04311).

    Two ways of use:

    * ``PwoAPruner(model, PwoAConfig(...)).compress()`` trains by itself and returns the user's own module, not
      wrapped, with the masks baked into its weights. Parameters stay the same objects.
    * ``PwoAPruner(model, config_list, evaluator).compress(max_steps, max_epochs)`` is an NNI pruner as NNI's own: the
      evaluator trains, the model stays wrapped until `unwrap_model`.

    The frozen teacher is the network as it is when the pruner is made, unless ``teacher_model`` is given; a second
    ``compress()`` goes on from the pruned weights, with the same teacher.

    Among NNI's other compressors:

    * Fused (``from_compressor``, either way round) its loss is added to theirs, whatever weight they give to the user's
      own. A pruner that has pruned already keeps its masks and only fine-tunes: so one prunes, then quantizes.
    * Inside ``AGPPruner`` and ``LinearPruner`` their updates are the dual updates, of the sparsity that they ask for at
      the time; the hard prune, to the whole of it, follows the last.
    * Masks are in the wrappers' own weights, so that ``unwrap_model``, ``state_dict`` and copies agree.
    * With granularity ``out_channel`` the hard prune also zeroes the constants of dead filters (bias, BatchNorm) and
      holds them at zero, so that `speedup` removes them without a change.

    Args:
        model: the robust network: images ``(N, C, H, W)`` to logits ``(N, classes)``.
        config_list: a `PwoAConfig`, or NNI's list of dicts; there, an entry may name its own ``allocation``
            (``{"op_types": ["Linear"], "sparse_ratio": 0.9, "allocation": "uniform"}``), and ``granularity`` takes our
            names too (``column``, ``block:4x4``, ``2:4``). The name is NNI's, whose ``from_compressor`` passes it.
        evaluator: NNI's; with a list only.
        existed_wrappers: NNI's; ``from_compressor`` passes it.
        callbacks: told of the progress of a `PwoAConfig` run, beside its progress bar.
        allocation: with a list: how each entry's ``sparse_ratio`` is spread over its layers, where the entry does not
            say it; ``uniform`` gives each layer the ratio, as NNI does.
        distillation, perturbation, hsic, admm, gradual, eps, pixel_range: with a list; see `PwoAConfig`. Half of the
            steps are gradual pruning's, unless ``gradual`` or ``admm`` says something else; not both of them.
        origin_loss_lambda: with a list: weight of the evaluator's own training loss beside ours. Fused under another
            compressor's loss, that one's own weight counts instead.
        steps_per_epoch: with a list: optimizer steps of an epoch, where ``max_epochs`` is given and the evaluator does
            not know them.
        take_batch: a function from the evaluator's batch to ``(x, y)``; that of `make_evaluator` unless given.
        teacher_model: with a list: the robust network, where ``model`` is no longer it; of the same architecture.

    Attributes:
        allocation: ``{layer: LayerAllocation}``: what each layer keeps; gradual pruning decides it at the hard prune.
        history: of the last `PwoAConfig` run, a dict per epoch.
        radius: of the perturbation in the last run, in pixel units.
        residual: ADMM's primal residual at the last hard prune.
        interval_steps, total_times: set by a scheduler: steps between its updates, and how many; -1 without one.

    Raises:
        ValueError: one line that says what cannot be used; the model is as it was.
    """

    #: No two such compressors train together: the same terms would count twice.
    trains_with_pwoa = True

    def __init__(
        self,
        model: nn.Module,
        config_list: PwoAConfig | list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        *,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        callbacks: Sequence[Callback] = (),
        allocation: str = "uniform",
        distillation: DistillationConfig | Mapping[str, Any] | None = None,
        perturbation: PerturbationConfig | Mapping[str, Any] | None = None,
        hsic: HSICConfig | Mapping[str, Any] | None = None,
        admm: ADMMConfig | Mapping[str, Any] | None = None,
        gradual: GradualConfig | Mapping[str, Any] | None = None,
        eps: float | str | None = None,
        pixel_range: tuple[float, float] = (0.0, 1.0),
        origin_loss_lambda: float = 0.0,
        steps_per_epoch: int | None = None,
        take_batch: TakeBatch | None = None,
        teacher_model: nn.Module | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; give a torch.nn.Module")
        if any(hasattr(module, "_nni_wrapper") for module in model.modules()):
            raise InputError(
                "model is wrapped by another compressor; use PwoAPruner.from_compressor(it, ...), or call its "
                "unwrap_model()"
            )
        check_weight("origin_loss_lambda", origin_loss_lambda)
        self.config = config_list if isinstance(config_list, PwoAConfig) else None
        self.callbacks = list(callbacks)
        self.origin_loss_lambda, self.steps_per_epoch = origin_loss_lambda, steps_per_epoch
        self.interval_steps, self.total_times = -1, 1
        self.history: list[dict[str, object]] = []
        self.radius: float | None = None
        self.residual: float | None = None
        self._run: Trainer | None = None
        self._own_loss: PwoALoss | None = None
        self._training: Training | None = None
        self._pruned = False
        # Constants of dead filters: False where a parameter stays 0. None until they are known.
        self._held: dict[str, Tensor] | None = None
        self._hooks: list[RemovableHandle] = []
        # Everything that can be refused is refused before NNI touches the model.
        if self.config is not None:
            list_only = {
                "evaluator": evaluator is not None,
                "allocation": allocation != "uniform",
                "distillation, perturbation, hsic, admm or gradual": bool(
                    distillation or perturbation or hsic or admm or gradual
                ),
                "eps or pixel_range": eps is not None or pixel_range != (0.0, 1.0),
                "origin_loss_lambda": origin_loss_lambda != 0,
                "steps_per_epoch": steps_per_epoch is not None,
                "teacher_model": teacher_model is not None,
            }
            if given := [name for name, is_given in list_only.items() if is_given]:
                raise InputError(
                    f"{'; '.join(given)}: with a PwoAConfig, say it there (these go with NNI's config_list)"
                )
            entries = self._read_config(model, self.config, take_batch)
        else:
            entries, self._targets = read_config_list(model, config_list, allocation, existed_wrappers)
            if not isinstance(evaluator, Evaluator):
                what = "missing" if evaluator is None else f"a {type(evaluator).__name__}, not NNI's"
                raise InputError(f"evaluator is {what}; NNI's config_list needs one (a PwoAConfig does not)")
            _check_steps_per_epoch(steps_per_epoch, evaluator)
            teacher = _teacher_of(model, teacher_model, existed_wrappers or {})
            if not evaluator._initialization_complete:
                evaluator._init_optimizer_helpers(model)
            check_optimizers(evaluator, [f"{x.module}.{x.name}" for x in self._targets.values()])
            self._own_loss = PwoALoss(
                teacher,
                distillation=distillation,
                perturbation=perturbation,
                hsic=hsic,
                eps=eps,
                pixel_range=pixel_range,
            )
            self._own_loss.check_student(model)
            self._admm, self._take_batch = as_section(ADMMConfig, admm, "admm"), take_batch_of(evaluator, take_batch)
            self._gradual = as_section(GradualConfig, gradual, "gradual")
            _check_one_way(self._admm, self._gradual, self._targets)
        self.allocation: dict[str, LayerAllocation] = {name: x.allocation for name, x in self._targets.items()}
        self._wrap_now = self.config is None
        super().__init__(model, entries, evaluator, existed_wrappers)
        self._wrap_now = True

    def _read_config(self, model: nn.Module, config: PwoAConfig, take_batch: TakeBatch | None) -> list[dict[str, Any]]:
        """Prepare a `PwoAConfig` run; the entry for NNI's books."""
        self._run = run = Trainer(model, config)
        register_settings(model)
        allocated, pruning = run.allocation.items(), run.target
        assert isinstance(pruning, MaskTarget)
        self._targets = {n: Target(n, "weight", x, pruning.budget) for n, x in allocated}
        self._admm, self._gradual, self._take_batch = config.admm, config.gradual, take_batch_of(None, take_batch)
        # The ratio is for NNI's books: what each layer keeps is in `allocation`.
        ratio = 1 - sum(x.weights * x.density for _, x in allocated) / sum(x.weights for _, x in allocated)
        return [{"op_names": list(run.layers), "target_names": ["weight"], "sparse_ratio": ratio, "granularity": [1]}]

    @classmethod
    def from_compressor(
        cls,
        compressor: Compressor,
        new_config_list: PwoAConfig | list[dict[str, Any]],
        *args: Any,
        evaluator: Evaluator | None = None,
        **kwargs: Any,
    ) -> PwoAPruner:
        """A pruner on another NNI compressor's wrappers and evaluator (see NNI's ``Compressor``).

        The teacher is the network with the masks that the other has made, unless ``teacher_model`` is given.

        Raises:
            ValueError: a `PwoAConfig` is given, which trains by itself and fuses with nothing; or the other compressor
                trains with PwoA, too, or would never make a mask in a fusion.
        """
        if isinstance(new_config_list, PwoAConfig):
            raise InputError(
                "new_config_list is a PwoAConfig, whose run trains by itself; call the other compressor's "
                "unwrap_model() and PwoAPruner(model, config), or fuse by NNI's config_list"
            )
        refuse_pwoa_twice(compressor, cls.__name__)
        refuse_idle_pruners(compressor)
        was_wrapped = compressor._is_wrapped
        try:
            made: PwoAPruner = super().from_compressor(
                compressor, new_config_list, *args, evaluator=evaluator, **kwargs
            )
        except BaseException:
            if was_wrapped and not compressor._is_wrapped:
                compressor.wrap_model()
            raise
        return made

    @property
    def teacher(self) -> nn.Module:
        """The frozen robust network that the loss asks the pruned one to agree with."""
        return self._run.teacher if self._own_loss is None and self._run is not None else self._loss.teacher

    @property
    def _loss(self) -> PwoALoss:
        """What a fused pruner trains with; it has a teacher of its own, and is made when it is first wanted."""
        if self._own_loss is None:
            assert self._run is not None
            config = self._run.config
            self._own_loss = PwoALoss(
                self._run.teacher,
                distillation=config.distillation,
                perturbation=config.perturbation,
                hsic=config.hsic,
                eps=config.eps,
                pixel_range=config.pixel_range,
                seed=config.seed,
            )
        return self._own_loss

    # -- wrapping --------------------------------------------------------------------------------

    def wrap_model(self) -> None:
        """See `Baking`; NNI's constructor, which calls this too, does not wrap for a `PwoAConfig`."""
        if self._wrap_now:
            super().wrap_model()

    def _space(self, target: Target) -> PruningTargetSpace:
        return self._target_spaces[target.module][target.name]

    def _validate_config(self) -> None:
        """Done by `read_config_list`, before the model is touched."""

    def _register_scalers(self) -> None:
        """Name the default granularity; masks come from our sparsity sets, not from NNI's scalers."""
        for spaces in self._target_spaces.values():
            for space in spaces.values():
                if space.granularity == "default" and space.type is TargetType.PARAMETER:
                    space.granularity = [1]

    # -- masks -----------------------------------------------------------------------------------

    def get_masks(self) -> Masks:
        """``{module: {target: 0/1 tensor}}``, plain dicts (NNI's own are defaultdicts, which do not load safely)."""
        found = super().get_masks()
        order = [name for name, _ in self.bound_model.named_modules() if name in found]
        return {name: {target: mask for target, mask in found[name].items() if mask is not None} for name in order}

    def update_masks(self, masks: Masks) -> None:
        """Take masks, as `load_masks` reads them: they are baked into the weights, and the layers count as pruned.

        Raises:
            ValueError: they are another model's, of layers that this pruner has not, or not of all that it has, where
                it has not pruned them itself.
        """
        check_masks(self.bound_model, masks)
        for name, targets in masks.items():
            spaces = self._module_wrappers[name].pruning_target_spaces if name in self._module_wrappers else {}
            if unknown := [target for target in targets if target not in spaces]:
                raise InputError(f"masks: {unknown[0]} of {name} is not pruned here; config_list does not select it")
        missing = [
            f"{target.name} of {target.module}"
            for target in self._targets.values()
            if masks.get(target.module, {}).get(target.name) is None
        ]
        if missing and not self._pruned:
            raise InputError(
                f"masks: {missing[0]} has none, and config_list selects it; give masks of all layers, or select those"
            )
        super().update_masks(masks)
        if not self._is_wrapped and not any(is_on(wrapper) for wrapper in self._module_wrappers.values()):
            read_parameters(self._module_wrappers.values())
            for name, targets in masks.items():
                for target, mask in targets.items():
                    parameter = self.bound_model.get_submodule(name).get_parameter(target)
                    parameter.data.masked_fill_(mask.to(parameter.device) == 0, 0)
        bake(self._module_wrappers.values())
        settle(self._module_wrappers.values())
        self._pruned, self._held = True, None

    def _collect_data(self) -> dict[str, dict[str, Tensor]]:
        """The weights alone: the dual has done its part when masks are made."""
        data: dict[str, dict[str, Tensor]] = {}
        for target in self._targets.values():
            data.setdefault(target.module, {})[target.name] = self._space(target).target.detach()
        return data

    def _calculate_metrics(self, data: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        return data  # the projection takes the norms of groups by itself

    def _generate_sparsity(self, metrics: dict[str, dict[str, Tensor]]) -> Masks:
        masks: Masks = {}
        for target in self._targets.values():
            value = metrics[target.module][target.name]
            masks.setdefault(target.module, {})[target.name] = target.mask(value).to(value.dtype)
        for name, spaces in self._target_spaces.items():
            for parameter, space in spaces.items():
                aligned = self._aligned(name, space, masks) if space.align and space.target is not None else None
                if aligned is not None:
                    own = masks.setdefault(name, {}).get(parameter)
                    masks[name][parameter] = aligned if own is None else own * aligned
        return masks

    def _aligned(self, name: str, space: PruningTargetSpace, masks: Masks) -> Tensor | None:
        """As NNI does: what belongs to a pruned slice of another mask goes with it; a dead filter's bias, above all."""
        align = space.align
        source = masks.get(align["module_name"] or name, {}).get(align["target_name"])
        if source is None:
            return None
        dims = [d % source.dim() for d in align["dims"]]
        module = self.bound_model.get_submodule(align["module_name"] or name)
        if is_weighted(module) and dims == [0] and align["target_name"] == "weight":
            alive = links(module, source != 0).any(2).flatten()  # a transposed convolution's filters lie elsewhere
        else:
            kept = (source != 0).sum([d for d in range(source.dim()) if d not in dims]) if source.dim() > 1 else source
            alive = kept != 0
        return alive.to(space.target.dtype)

    @torch.no_grad()
    def _cut(self, progress: float) -> None:
        masks: Masks = {}
        for budget, weights in self._by_budget():
            for key, mask in budget.masks(weights, progress).items():
                target = self._targets[key]
                masks.setdefault(target.module, {})[target.name] = mask.to(weights[key].dtype)
        super().update_masks(masks)
        self._bake_own()

    def _take_allocation(self, allocation: Mapping[str, LayerAllocation]) -> None:
        for name, layer in allocation.items():
            self.allocation[name] = layer
            self._targets[name] = replace(self._targets[name], allocation=layer)

    def _by_budget(self) -> Iterator[tuple[Budget, dict[str, Tensor]]]:
        names: dict[Budget, list[str]] = {}
        for name, target in self._targets.items():
            names.setdefault(target.budget, []).append(name)
        for budget, shared in names.items():
            yield budget, {name: self._space(self._targets[name]).target for name in shared}

    @torch.no_grad()
    def _hard_prune(self) -> None:
        plan = self._training.plan if self._training is not None else None
        if plan is not None and plan.gradual:  # what each layer keeps follows the weights
            for budget, weights in self._by_budget():
                self._take_allocation(budget.allocate(weights))
        super().update_masks(self.generate_masks())
        self._pruned = True
        self._held = None

    def _constants(self) -> dict[str, Tensor] | None:
        """Constants of the filters that are dead by our masks; None while no batch has been seen."""
        filters = [
            target
            for target in self._targets.values()
            if isinstance(target.sparsity_set, Filter) and target.name == "weight"
        ]
        masks = {
            target.module: self._space(target).mask
            for target in filters
            if is_weighted(self.bound_model.get_submodule(target.module))
        }
        if not masks:
            return {}
        images = self._training.images if self._training is not None else None
        # The teacher is the same network without wrappers; only where the masks are matters.
        return None if images is None else dead_constants(self.teacher, masks, images)

    @torch.no_grad()
    def _hold(self) -> None:
        """What is pruned stays 0, in the weights themselves, and so do constants of dead filters."""
        self._bake_own()
        if self._held is None:
            self._held = self._constants()
        for name, keep in (self._held or {}).items():
            parameter = live_parameter(self.bound_model, name)
            parameter.mul_(keep.to(parameter.device))

    def _bake_own(self) -> None:
        bake(self._module_wrappers[name] for name in self._target_spaces)

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
            ValueError: arguments, data or model cannot be used.
            TrainingError: the loss is no number. Whatever is raised, the weights are as they were.
        """
        refuse_taken_over(self._is_wrapped, self._module_wrappers.values())
        if self._run is not None:
            if max_steps is not None or max_epochs is not None:
                raise InputError(
                    "compress: a PwoAConfig says how long to train (epochs); call compress() without arguments"
                )
            self._compress_by_config(self._run)
            return self.bound_model, self.get_masks()
        check_length(max_steps, max_epochs)
        self.wrap_model()
        self.interval_steps, self.total_times = -1, 1  # no scheduler has called this
        self._plan(max_steps, max_epochs)
        pruned, self._pruned = self._pruned, False
        try:
            with own_loss_spared(self, self.origin_loss_lambda):
                super().compress(max_steps, max_epochs)
        except BaseException:
            self._pruned = pruned
            raise
        return self.bound_model, self.get_masks()

    def _compress_by_config(self, run: Trainer) -> None:
        self.unwrap_model()  # NNI's wrappers empty the GPU's cache at every forward
        callbacks = list(self.callbacks)
        if run.config.progress:
            from ..progress import default_progress

            callbacks.append(default_progress())
        with seeded(run.config.seed):
            masks = run.fit(callbacks)
        self.history, self.radius, self.residual = run.history, run.radius, run.residual
        assert isinstance(run.target, MaskTarget)
        self._pruned, self._held = True, dict(run.target.held)
        self._take_allocation(run.allocation)
        for name, mask in masks.items():
            space = self._space(self._targets[name])
            with torch.no_grad():
                space.target.data = run.layers[name].get_parameter("weight").detach().clone()
                setattr(space._wrapper, space._mask_name, mask.to(space.target.dtype))

    # -- NNI's life cycle ------------------------------------------------------------------------

    def _plan(self, max_steps: int | None, max_epochs: int | None) -> Plan | None:
        """When to update and to prune in a training of that length."""
        per_epoch = self._steps_of_an_epoch()
        config, gradual = self._admm, self._gradual
        by_epochs = None if max_epochs is None or per_epoch is None else max_epochs * per_epoch
        steps = min((n for n in (max_steps, by_epochs) if n is not None), default=None)
        if self.interval_steps > 0:
            if config.epochs is not None or config.interval is not None:
                raise InputError("admm: inside a scheduler, which says when, leave epochs and interval out")
            if gradual.wanted:
                raise InputError("gradual: inside a scheduler, which says when, leave it out")
            plan = plan_scheduled(self.interval_steps, self.total_times, steps)
            if steps is not None and steps < plan.last_update:
                raise InputError(
                    f"compress: {steps} steps are over before the scheduler's last update, at step {plan.last_update}; "
                    f"give max_steps={plan.last_update} or more"
                )
            return plan
        if steps is None:
            raise InputError("compress: max_epochs needs steps_per_epoch=; give it to PwoAPruner, or give max_steps")
        if per_epoch is None and (config.epochs or config.interval or gradual.epochs):
            name = "gradual: epochs needs" if gradual.epochs else "admm: epochs and interval need"
            raise InputError(f"{name} steps_per_epoch=; give it to PwoAPruner, or leave them out")
        return plan_alone(config, gradual, steps, per_epoch, one_cut=_in_one_cut(self._targets))

    def _steps_of_an_epoch(self) -> int | None:
        known: int | None = getattr(self.evaluator, "steps_per_epoch", None)
        return self.steps_per_epoch if self.steps_per_epoch is not None else known

    def _single_compress(self, max_steps: int | None, max_epochs: int | None) -> None:
        self._fusion_compress(max_steps, max_epochs)

    def _fuse_preprocess(self, evaluator: Evaluator) -> None:
        """Weigh the user's own loss now; ours is added when training starts, over all others: then none scales it."""
        if self._run is not None and not self._pruned:
            raise InputError("a PwoAConfig's run trains by itself; call PwoAPruner's compress() before others'")
        if not loss_is_patched(evaluator):
            evaluator.patch_loss(weighing(self.origin_loss_lambda))
        at_next_training(evaluator, partial(self._train, evaluator))

    def _train(self, evaluator: Evaluator, train: Train, max_steps: int | None, max_epochs: int | None) -> None:
        before = self._pruned, self._held, self.residual, dict(self.allocation)
        try:
            with undone_on_error(self.bound_model, evaluator):
                check_counts(max_steps, max_epochs)
                self._start(evaluator, max_steps, max_epochs)
                train(max_steps, max_epochs)
                if self._training is not None:
                    self._training.finish()  # if training ended early; and whether it left numbers
        except BaseException:
            self._pruned, self._held, self.residual, allocation = before
            self._take_allocation(allocation)
            self._end()
            raise

    def _end(self) -> None:
        self._training = None
        # A scheduler sets these again, each time it begins.
        self.interval_steps, self.total_times = -1, 1
        for target in self._targets.values():
            self._space(target).sparse_ratio = target.ratio

    def _start(self, evaluator: Evaluator, max_steps: int | None, max_epochs: int | None) -> None:
        plan = None if self._pruned else self._plan(max_steps, max_epochs)
        if not self._pruned:
            self._held, self.residual = None, None
            for spaces in self._target_spaces.values():
                for space in spaces.values():
                    if space.mask is not None:
                        space.mask = torch.ones_like(space.mask)
            _logger.info("allocation\n%s", allocation_table(self.allocation))
        self._training = Training(
            self.bound_model,
            self._loss,
            plan,
            admm=self._admm,
            take_batch=self._take_batch,
            weights={name: self._space(target).target for name, target in self._targets.items()},
            targets=self._targets,
            share=self._share,
            cut=self._cut,
            hold_cut=self._bake_own,
            prune=self._hard_prune,
            hold=self._hold,
            pruned=self._pruned,
            per_epoch=self._steps_of_an_epoch(),
        )
        evaluator.patch_loss(self._training.loss)
        evaluator.patch_optimizer_step(before_step_tasks=[], after_step_tasks=[self._training.after_step])

    def _share(self, name: str) -> float:
        """How much of a parameter's sparsity is asked for now: all of it, unless a scheduler ramps it."""
        target = self._targets[name]
        ratio: float = self._space(target).sparse_ratio
        return ratio / target.ratio if self.interval_steps > 0 else 1.0

    def _fuse_postprocess(self, evaluator: Evaluator) -> None:
        training = self._training
        if training is None:
            return
        self._hold()
        settle(self._module_wrappers.values())
        self._tell_unmasked()
        self.radius = self._loss.radius
        if training.residual is not None:
            self.residual = training.residual
        self._end()


def _check_steps_per_epoch(given: int | None, evaluator: Evaluator) -> None:
    if given is None:
        return
    check_count("steps_per_epoch", given)
    known: int | None = getattr(evaluator, "steps_per_epoch", None)
    if known is not None and known != given:
        raise InputError(f"steps_per_epoch={given} contradicts the evaluator's own, which is {known}; leave it out")


def _in_one_cut(targets: Mapping[str, Target]) -> bool:
    """Whether there is no way between dense and the end, since all are n:m."""
    return all(target.sparsity_set.fixed_density is not None for target in targets.values())


def _check_one_way(admm: ADMMConfig, gradual: GradualConfig, targets: Mapping[str, Target]) -> None:
    if gradual.wanted and admm.is_set:
        raise InputError("admm and gradual: NNI's list takes one of them; leave one out (a PwoAConfig takes both)")
    if gradual.wanted and _in_one_cut(targets):
        raise InputError(f"gradual: {gradual} does not go with n:m, which is reached in one cut; leave it out")


def _teacher_of(model: nn.Module, given: nn.Module | None, wrappers: dict[str, ModuleWrapper]) -> nn.Module:
    if given is None:
        return masked_copy(model, wrappers)
    if not isinstance(given, nn.Module):
        raise InputError(f"teacher_model is a {type(given).__name__}; give a torch.nn.Module, or leave it out")
    mine = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if {name: tuple(parameter.shape) for name, parameter in given.named_parameters()} != mine:
        raise InputError("teacher_model is not of the model's architecture: names or shapes of parameters differ")
    return frozen_copy(given)
