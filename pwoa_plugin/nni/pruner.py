"""`PwoAPruner`: the door into NNI 3.0."""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from nni.compression.base.compressor import Compressor, Pruner
from nni.compression.base.setting import PruningSetting
from nni.compression.base.target_space import PruningTargetSpace, TargetType
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from schema import SchemaError
from torch import Tensor, nn

from .._random import seeded
from ..config import ADMMConfig, DistillationConfig, HSICConfig, PerturbationConfig, PwoAConfig
from ..method.admm import ADMM
from ..method.allocation import ALLOCATIONS, LayerAllocation, allocate
from ..method.batches import check_images, check_labels
from ..method.callback import Callback
from ..method.compression import Compression, TrainingError, build_admm, build_objective, restored_on_error
from ..method.distillation import frozen_copy
from ..method.layers import is_weighted, refuse_transposed
from ..method.objective import PwoAObjective
from ..method.sparsity import SparsitySet, make_sparsity_set
from .granularity import sparsity_set_of

__all__ = ["PwoAPruner"]

_logger = logging.getLogger(__name__)

_NNI_GRANULARITIES = ("default", "in_channel", "out_channel", "per_channel")
_CHECKED_STEPS = 100  # the first batches are looked at; later ones of the same loader are like them
_STEPS_BETWEEN_CHECKS = 10

Masks = dict[str, dict[str, Tensor]]
TakeBatch = Callable[[Any], tuple[Tensor, Tensor | None]]


def take_images_and_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    """``(x, y)`` of a batch as loaders give it: a tuple or list, a dict of ``pixel_values`` and ``labels``, or ``x``.

    Raises:
        ValueError: there are no images in it.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping):
        x, y = batch.get("pixel_values", batch.get("x")), batch.get("labels", batch.get("y"))
    elif isinstance(batch, (tuple, list)) and batch:
        x, y = batch[0], batch[1] if len(batch) > 1 else None
    else:
        x = y = None
    if not isinstance(x, Tensor):
        what = f"keys {list(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(f"no images in a batch ({what}); pass take_batch=, a function from your batch to (x, y)")
    return x, y


class PwoAPruner(Pruner):
    """Prune an adversarially robust network without adversarial examples (PwoA, arXiv 2210.04311).

    Two ways of use:

    * ``PwoAPruner(model, PwoAConfig(...)).compress()`` trains by itself and returns the user's own module, not
      wrapped, with the masks baked into its weights. Parameters stay the same objects.
    * ``PwoAPruner(model, config_list, evaluator).compress(max_steps, max_epochs)`` is an NNI pruner as NNI's own: the
      evaluator trains, the model stays wrapped until `unwrap_model`.

    The frozen teacher is the network as it is when the pruner is made; a second ``compress()`` goes on from the
    pruned weights, with the same teacher and the same allocation.

    Args:
        model: the robust network: images ``(N, C, H, W)`` to logits ``(N, classes)``.
        config_list: a `PwoAConfig`, or NNI's list of dicts. The name is NNI's, whose ``from_compressor`` passes it.
        evaluator: NNI's; with a list only.
        existed_wrappers: NNI's; ``from_compressor`` passes it.
        callbacks: told of the progress of a `PwoAConfig` run, beside its progress bar.
        allocation: how a list's ``sparse_ratio`` is spread over an entry's layers; ``uniform`` gives each layer the
            ratio, as NNI does.
        distillation, perturbation, hsic, admm, eps, pixel_range: with a list; see `PwoAConfig`. Without
            ``admm.epochs`` a quarter of the steps is ADMM's.
        origin_loss_lambda: with a list: weight of the evaluator's own training loss beside ours.
        steps_per_epoch: with a list, where ``compress`` is given ``max_epochs``.
        take_batch: with a list: a function from the evaluator's batch to ``(x, y)``.

    Attributes:
        allocation: ``{layer: LayerAllocation}``: what each layer keeps.
        history: of the last `PwoAConfig` run, a dict per epoch.
        radius: of the perturbation in the last run, in pixel units.
        residual: ADMM's primal residual at the last hard prune.

    Raises:
        ValueError: one line that says what cannot be used; the model is as it was.
    """

    def __init__(
        self,
        model: nn.Module,
        config_list: PwoAConfig | list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        *,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        callbacks: Sequence[Callback] = (),
        allocation: str = "uniform",
        distillation: DistillationConfig | None = None,
        perturbation: PerturbationConfig | None = None,
        hsic: HSICConfig | None = None,
        admm: ADMMConfig | None = None,
        eps: float | None = None,
        pixel_range: tuple[float, float] = (0.0, 1.0),
        origin_loss_lambda: float = 0.0,
        steps_per_epoch: int | None = None,
        take_batch: TakeBatch = take_images_and_labels,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model is a {type(model).__name__}; give a torch.nn.Module")
        self.config = config_list if isinstance(config_list, PwoAConfig) else None
        self.callbacks = list(callbacks)
        self._run: Compression | None = None
        self._sets: dict[str, SparsitySet] = {}
        self.allocation: dict[str, LayerAllocation] = {}
        self.history: list[dict[str, object]] = []
        self.radius: float | None = None
        self.residual: float | None = None
        if self.config is not None:
            list_only = {
                "evaluator": evaluator is not None,
                "allocation": allocation != "uniform",
                "distillation, perturbation, hsic or admm": bool(distillation or perturbation or hsic or admm),
                "eps or pixel_range": eps is not None or pixel_range != (0.0, 1.0),
                "origin_loss_lambda": origin_loss_lambda != 0,
                "steps_per_epoch": steps_per_epoch is not None,
            }
            if given := [name for name, is_given in list_only.items() if is_given]:
                raise ValueError(
                    f"{'; '.join(given)}: with a PwoAConfig, say it there (these go with NNI's config_list)"
                )
            # Everything that can be refused is refused before NNI touches the model.
            self._run = Compression(model, self.config)
            self.allocation = self._run.allocation
            self._sets = dict.fromkeys(self.allocation, make_sparsity_set(self._run.config.granularity))
            # The ratio is for NNI's books: what each layer keeps is in `allocation`.
            ratio = 1 - sum(x.weights * x.density for x in self.allocation.values()) / sum(
                x.weights for x in self.allocation.values()
            )
            config_list = [
                {
                    "op_names": list(self._run.layers),
                    "target_names": ["weight"],
                    "sparse_ratio": ratio,
                    "granularity": [1],
                }
            ]
            self._teacher = self._run.teacher
        else:
            if not isinstance(config_list, list):
                raise ValueError(
                    f"config_list is a {type(config_list).__name__}; give a PwoAConfig or NNI's list of dicts"
                )
            if evaluator is None:
                raise ValueError("evaluator is missing; NNI's config_list needs one (a PwoAConfig does not)")
            self._teacher = frozen_copy(model)
        self.distillation = distillation or DistillationConfig()
        self.perturbation = perturbation or PerturbationConfig()
        self.hsic, self.admm = hsic or HSICConfig(), admm or ADMMConfig()
        self.eps, self.pixel_range = eps, pixel_range
        self.origin_loss_lambda, self.steps_per_epoch, self.take_batch = origin_loss_lambda, steps_per_epoch, take_batch
        self._wrap_now = self.config is None
        for module in model.modules():
            # NNI knows a few classes by name, no subclasses (a transformer's out_proj is one): its way to add one.
            if is_weighted(module) and type(module).__name__ not in PruningSetting.registry:
                PruningSetting.register(type(module).__name__, PruningSetting.default_setting)
        super().__init__(model, config_list, evaluator, existed_wrappers)
        self._wrap_now = True
        if self.config is None:
            if not self._target_spaces:
                self.unwrap_model()
                raise ValueError(
                    "config_list selects no layer; check op_names and op_types against model.named_modules()"
                )
            try:
                self.allocation = self._allocate(allocation)
            except ValueError:
                self.unwrap_model()
                raise

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

        Raises:
            ValueError: a `PwoAConfig` is given, which trains by itself and fuses with nothing.
        """
        if isinstance(new_config_list, PwoAConfig):
            raise ValueError(
                "new_config_list is a PwoAConfig, whose run trains by itself; call the other compressor's "
                "unwrap_model() and PwoAPruner(model, config), or fuse by NNI's config_list"
            )
        made: PwoAPruner = super().from_compressor(compressor, new_config_list, *args, evaluator=evaluator, **kwargs)
        return made

    # -- wrapping --------------------------------------------------------------------------------

    def wrap_model(self) -> None:
        """Wrap the layers as NNI does; their wrappers start from the model's current weights."""
        if self._is_wrapped or not self._wrap_now:
            return
        with torch.no_grad():
            for name, wrapper in self._module_wrappers.items():
                for target, space in self._target_spaces.get(name, {}).items():
                    current = getattr(wrapper.module, target, None)
                    if space.type is TargetType.PARAMETER and isinstance(current, Tensor):
                        space.target.copy_(current)
        super().wrap_model()

    def unwrap_model(self) -> None:
        """Unwrap the layers, masks baked into their weights; without effect where they are not wrapped."""
        if not self._is_wrapped:
            return
        self._bake()
        super().unwrap_model()

    def _parameters(self) -> dict[str, dict[str, PruningTargetSpace]]:
        """The parameters to prune, ``{module: {target: target space}}``, in the model's order (NNI's is a set's)."""
        return {
            name: {
                target: space
                for target, space in self._target_spaces[name].items()
                if space.type is TargetType.PARAMETER and space.target is not None
            }
            for name, _ in self.bound_model.named_modules()
            if name in self._target_spaces
        }

    @torch.no_grad()
    def _bake(self) -> None:
        for spaces in self._parameters().values():
            for space in spaces.values():
                if space.mask is not None:
                    space.target.mul_(space.mask)

    def _validate_config(self) -> None:
        """As NNI does; our own names of granularity (``column``, ``block:RxC``, ``2:4``...) pass too."""
        given: list[dict[str, Any]] = self.config_list  # type: ignore[has-type]
        self.config_list = copy.deepcopy(given)
        for entry in self.config_list:
            for setting in (entry, *entry.get("target_settings", {}).values()):
                name = setting.get("granularity")
                if isinstance(name, str) and name not in _NNI_GRANULARITIES:
                    make_sparsity_set(name)
                    setting["granularity"] = "default"
        try:
            super()._validate_config()
        except SchemaError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"config_list: {reason}") from None
        finally:
            self.config_list = given

    def _register_scalers(self) -> None:
        """Name the default granularity; masks come from our sparsity sets, not from NNI's scalers."""
        for spaces in self._target_spaces.values():
            for space in spaces.values():
                if space.granularity == "default":
                    space.granularity = self._set_default_sparse_granularity(space)

    def _set_default_sparse_granularity(self, target_space: PruningTargetSpace) -> Any:
        return (
            [1] if target_space.type is TargetType.PARAMETER else super()._set_default_sparse_granularity(target_space)
        )

    def get_masks(self) -> Masks:
        """``{module: {target: 0/1 tensor}}``, plain dicts (NNI's own are defaultdicts, which do not load safely)."""
        found = super().get_masks()
        order = [name for name, _ in self.bound_model.named_modules() if name in found]
        return {name: {target: mask for target, mask in found[name].items() if mask is not None} for name in order}

    # -- compress --------------------------------------------------------------------------------

    def compress(self, max_steps: int | None = None, max_epochs: int | None = None) -> tuple[nn.Module, Masks]:
        """Prune.

        Args:
            max_steps: with NNI's list: optimizer steps to train.
            max_epochs: with NNI's list: epochs to train (needs ``steps_per_epoch``).

        Returns:
            The user's model and its masks, ``{module: {target: 0/1 tensor}}``.

        Raises:
            ValueError: arguments, data or model cannot be used.
            TrainingError: the loss is no number. Whatever is raised, the weights are as they were.
        """
        if self._run is None:
            if (max_steps is None) == (max_epochs is None):
                raise ValueError("compress: give max_steps or max_epochs, one of them")
            model, masks = super().compress(max_steps, max_epochs)
            return model, masks
        if max_steps is not None or max_epochs is not None:
            raise ValueError(
                "compress: a PwoAConfig says how long to train (epochs); call compress() without arguments"
            )
        self._compress_by_config(self._run)
        return self.bound_model, self.get_masks()

    def _compress_by_config(self, run: Compression) -> None:
        self.unwrap_model()  # NNI's wrappers empty the GPU's cache at every forward
        callbacks = list(self.callbacks)
        if run.config.progress:
            from ..progress import default_progress

            callbacks.append(default_progress())
        with seeded(run.config.seed):
            masks = run.run(callbacks)
        self.history, self.radius, self.residual = run.history, run.radius, run.residual
        for name, mask in masks.items():
            space = self._target_spaces[name]["weight"]
            with torch.no_grad():
                space.target.data = run.layers[name].get_parameter("weight").detach().clone()
                setattr(space._wrapper, space._mask_name, mask.to(space.target.dtype))

    # -- NNI's life cycle ------------------------------------------------------------------------

    def _allocate(self, rule: str) -> dict[str, LayerAllocation]:
        """Groups to keep by layer; a total is spread over the layers of equal ratio and granularity."""
        if rule not in ALLOCATIONS:
            raise ValueError(f"allocation={rule!r} is unknown; use one of {', '.join(ALLOCATIONS)}")
        entries: dict[tuple[float, str], dict[str, Tensor]] = defaultdict(dict)
        for name, spaces in self._parameters().items():
            space = spaces.get("weight")
            if space is None or space.sparse_ratio is None:
                continue
            self._sets[name] = sparsity_set_of(space.granularity, space.target.shape, name)
            refuse_transposed({name: space._wrapper.module}, self._sets[name])
            density = self._sets[name].fixed_density
            if density is not None and abs(1 - density - space.sparse_ratio) > 1e-9:
                raise ValueError(
                    f"{name}: sparse_ratio={space.sparse_ratio} contradicts granularity={space.granularity!r}, "
                    f"which prunes {1 - density:g}"
                )
            key = (space.sparse_ratio, repr((type(self._sets[name]).__name__, vars(self._sets[name]))))
            entries[key][name] = space.target.detach()
        if not entries:
            raise ValueError(
                "config_list gives no weight a sparse_ratio; PwoA needs one (thresholds are not supported)"
            )
        allocated: dict[str, LayerAllocation] = {}
        for (ratio, _), weights in entries.items():
            allocated |= allocate(weights, ratio, self._sets[next(iter(weights))], ALLOCATIONS[rule])
        return allocated

    def _collect_data(self) -> dict[str, dict[str, Tensor]]:
        admm = self._admm
        return {
            name: {"weight": spaces["weight"].target.detach() + (admm.u[name] if admm and name in admm.u else 0)}
            for name, spaces in self._parameters().items()
            if name in self.allocation
        }

    def _calculate_metrics(self, data: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        return data  # the projection takes the norms of groups by itself

    def _generate_sparsity(self, metrics: dict[str, dict[str, Tensor]]) -> Masks:
        masks: Masks = {}
        for name, spaces in self._parameters().items():
            if name not in metrics:
                continue
            kept = self._mask_of(name)(metrics[name]["weight"])
            masks[name] = {"weight": kept.to(metrics[name]["weight"].dtype)}
            if "bias" in spaces:  # aligned, as NNI does: the bias of a dead filter goes with it
                masks[name]["bias"] = kept.flatten(1).any(1).to(spaces["bias"].target.dtype)
        return masks

    def _mask_of(self, name: str) -> Callable[[Tensor], Tensor]:
        return partial(self.allocation[name].mask, self._sets[name])

    _admm: ADMM | None = None

    def _single_compress(self, max_steps: int | None, max_epochs: int | None) -> None:
        self._fusion_compress(max_steps, max_epochs)

    def _fusion_compress(self, max_steps: int | None, max_epochs: int | None) -> None:
        if max_steps is None and self.steps_per_epoch is None:
            raise ValueError("compress: max_epochs needs steps_per_epoch=; give it to PwoAPruner, or give max_steps")
        if self.steps_per_epoch is None and (self.admm.epochs or self.admm.interval):
            raise ValueError(
                "admm: epochs and interval need steps_per_epoch=; give it to PwoAPruner, or leave them out"
            )
        self._total_steps = max_steps if max_steps is not None else (max_epochs or 0) * (self.steps_per_epoch or 0)
        with restored_on_error(self.bound_model):
            super()._fusion_compress(max_steps, max_epochs)

    def _fuse_preprocess(self, evaluator: Evaluator) -> None:
        self._step, self._objective, self._admm, self.residual, self._pruned = 0, None, None, None, False
        for spaces in self._parameters().values():
            for space in spaces.values():
                if space.mask is not None:
                    space.mask = torch.ones_like(space.mask)
        if self.admm.epochs is None:
            self._admm_steps = self._total_steps // 4
        else:
            self._admm_steps = self.admm.epochs * (self.steps_per_epoch or 0)
        if self._admm_steps > 1:
            weights = {name: self._target_spaces[name]["weight"].target for name in self.allocation}
            masks = {name: self._mask_of(name) for name in weights}
            self._admm, self._interval = build_admm(
                weights, masks, self.admm, self._admm_steps, self.steps_per_epoch or 0
            )
        evaluator.patch_loss(self._loss)
        evaluator.patch_optimizer_step(before_step_tasks=[], after_step_tasks=[self._after_step])

    def _loss(self, origin: Tensor, batch: Any, *_: Any, **__: Any) -> Tensor:
        x, y = self.take_batch(batch)
        if self._step < _CHECKED_STEPS:
            check_images(x, self.pixel_range, "evaluator's batch")
        device = next(self._teacher.parameters()).device
        if x.device != device:
            x, y = x.to(device), None if y is None else y.to(device)
        if self._objective is None:
            self._objective, self.radius = build_objective(
                self._teacher,
                x,
                distillation=self.distillation,
                perturbation=self.perturbation,
                hsic=self.hsic,
                eps=self.eps,
                pixel_range=self.pixel_range,
            )
            if self._objective.needs_labels and y is None:
                raise ValueError(
                    f"batches have no labels, and hsic.lambda_y={self.hsic.lambda_y:g} needs them; set it to 0"
                )
        if self._step < _CHECKED_STEPS and y is not None and self._objective.needs_labels:
            check_labels(y, len(x), self._objective.classes, "evaluator's batch")
        self._objective.use_hsic = self._admm is None or self.admm.hsic
        loss: Tensor = self._objective(self.bound_model, x, y)
        if self._step % _STEPS_BETWEEN_CHECKS == 0 and not loss.isfinite():
            raise TrainingError(
                f"the loss is not finite at step {self._step + 1}; the model is as it was: lower the learning rate"
            )
        if self._admm is not None:
            loss = loss + self._admm.penalty()
        # A weight of 0 leaves the user's loss out altogether: 0 * NaN is NaN.
        return loss + self.origin_loss_lambda * origin if self.origin_loss_lambda else loss

    _objective: PwoAObjective | None = None

    @torch.no_grad()
    def _after_step(self) -> None:
        self._step += 1
        if self._pruned:
            return
        if self._admm is None or self._step >= self._admm_steps:
            self._hard_prune()
        elif self._step % self._interval == 0:
            self._admm.dual_update()

    def _hard_prune(self) -> None:
        if self._admm is not None:
            self.residual = self._admm.residual()
            _logger.info("primal residual |W - Z| / |W| at the hard prune: %.4f", self.residual)
        self._admm, self._pruned = None, True  # the weights alone are projected, without the dual
        self.update_masks(self.generate_masks())
        self._bake()

    def _fuse_postprocess(self, evaluator: Evaluator) -> None:
        if not self._pruned:  # training ended early
            self._hard_prune()
        self._bake()
