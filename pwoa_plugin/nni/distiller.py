"""`PwoADistiller`: PwoA's loss under any NNI pruner or quantizer."""

from __future__ import annotations

import logging
from typing import Any, Self, Unpack

import torch
from nni.compression.base.compressor import Compressor, Distiller
from nni.compression.base.target_space import TargetType
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils import Evaluator
from torch import Tensor, nn

from .._network import check_plain, check_trainable
from .._wrapped import network_or_ddp
from ..errors import InputError
from ..method.loss import PwoALoss
from .batch import BatchAdapter, Predict, TakeBatch
from .compressor import PwoACompressor
from .entries import check_schema, select_modules
from .fusion import prepare_evaluator, with_weighed_loss
from .lengths import in_steps, steps_per_epoch
from .options import LossOptions
from .training import Training
from .wrappers import sync_buffers

_logger = logging.getLogger(__name__)

_SELECTING = ("op_types", "op_names", "op_names_re", "exclude_op_types", "exclude_op_names", "exclude_op_names_re")


class PwoADistiller(PwoACompressor, Distiller):
    """Train whatever NNI prunes or quantizes to stay robust, on natural images: PwoA's loss without its pruning.

    >>> agp = AGPPruner(LevelPruner(model, pruned), interval_steps=50, total_times=10, evaluator=evaluator)
    >>> distil = PwoADistiller.from_compressor(agp, [{"op_types": ["Linear"]}], teacher_model=robust_model, eps=0.3)
    >>> distil.compress(max_steps=600, max_epochs=None)
    >>> distil.unwrap_model()  # masks are baked in; NNI's own unwrap_model leaves them out

    Alone it trains the model as it is. The order of fusing does not matter: PwoA's loss is added last, and the others'
    losses keep their weights. After ``compress`` the masks are in the wrappers' own weights, so that any way of
    unwrapping gives zeros; later masks are baked in by `unwrap_model`.

    Args:
        model: the student: images ``(N, C, H, W)`` to logits ``(N, classes)``.
        config_list: NNI's way to select modules (``op_types``, ``op_names``, ``op_names_re``, ``exclude_...``): their
            inputs are HSIC's hidden layers T_j, and those of feature distillation. An empty list is ``auto``.
        evaluator: NNI's; it trains. ``from_compressor`` takes the other compressor's.
        teacher_model: the robust network; a frozen copy is kept, and it may be ``model`` itself, or of another
            architecture with the same classes (see `PwoALoss`).
        teacher_predict: a function ``(batch, network)`` to logits, if ``network(x)`` will not do; the student is called
            through it too. The batch is the evaluator's, with perturbed images in place of its own.
        existed_wrappers: NNI's; ``from_compressor`` passes it.
        origin_loss_lambda: weight of the evaluator's own training loss beside ours.
        take_batch: a function from the evaluator's batch to ``(x, y)``, that of `make_evaluator` unless given; ``y``
            may be None if ``hsic.lambda_y`` is 0.
        progress: show how far it is and the time left, where NNI's TorchEvaluator trains (others show their own).
        **options: ``distillation``, ``perturbation``, ``hsic``, ``adversarial``, ``eps``, ``pixel_range`` and
            ``output``, as `PwoALoss` takes them.

    Attributes:
        loss: the `PwoALoss` that trains.
        terms: summands of the last step's loss by name, detached.
        hidden_layers: names of the modules whose inputs are the T_j; known after the first step.
        radius: of the perturbation in pixel units; known after the first step.

    Raises:
        InputError: one line that says what cannot be used; the model is as it was.
    """

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        teacher_model: nn.Module | None = None,
        teacher_predict: Predict | None = None,
        *,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        origin_loss_lambda: float = 0.0,
        take_batch: TakeBatch | None = None,
        progress: bool = True,
        **options: Unpack[LossOptions],
    ) -> None:
        if teacher_model is None:
            raise InputError("teacher_model is missing; give the robust network")
        check_trainable(model)
        check_plain(teacher_model, "teacher_model")
        self._prepare(evaluator, take_batch, origin_loss_lambda)
        model = network_or_ddp(model)
        self.progress = progress
        layers = _selected(model, config_list)
        teacher = teacher_model if teacher_predict is None else BatchAdapter(teacher_model, teacher_predict)
        self.loss = PwoALoss(teacher, **options)
        if layers:
            if self.loss.hsic.layers != "auto":
                raise InputError("hsic.layers and config_list both name hidden layers; leave one of them out")
            self.loss.hsic = self.loss.hsic.model_copy(update={"layers": tuple(layers)})
            self.loss.layers_field = "config_list"
        self.loss.check_student(model)
        wanted = [
            f"{name}.{target}"
            for name, wrapper in sorted((existed_wrappers or {}).items())
            for target, space in (wrapper.pruning_target_spaces | wrapper.quantization_target_spaces).items()
            if space.type is TargetType.PARAMETER and space.target is not None and space.target.requires_grad
        ]
        prepare_evaluator(evaluator, model, wanted)
        self._student = model if teacher_predict is None else BatchAdapter(model, teacher_predict)
        # Hidden layers are read by hooks, in our forward only: a wrapper per layer would hold every activation.
        super().__init__(model, [], with_weighed_loss(evaluator, origin_loss_lambda), existed_wrappers)
        self.config_list = config_list

    @classmethod
    def from_compressor(  # type: ignore[override]
        cls,
        compressor: Compressor,
        new_config_list: list[dict[str, Any]],
        teacher_model: nn.Module | None = None,
        teacher_predict: Predict | None = None,
        *,
        evaluator: Evaluator | None = None,
        **options: Any,
    ) -> Self:
        """A distiller over another NNI compressor, on its model, wrappers and evaluator.

        Other arguments are the class's; ``evaluator`` is needed if the other compressor has none.

        Raises:
            InputError: the compressors do not go together, or an argument cannot be used.
        """
        options |= {"teacher_model": teacher_model, "teacher_predict": teacher_predict}
        return super().from_compressor(compressor, new_config_list, evaluator=evaluator, **options)

    @property
    def terms(self) -> dict[str, Tensor]:
        return self.loss.terms

    @property
    def hidden_layers(self) -> list[str]:
        return self.loss.hidden_layers

    @property
    def radius(self) -> float | None:
        return self.loss.radius

    # -- masks -----------------------------------------------------------------------------------

    @torch.no_grad()
    def _bake(self) -> None:
        """Make what the wrappers compute with, mask and Slim's factor, the wrappers' own weights."""
        for wrapper in self._wrappers().values():
            for space in wrapper.pruning_target_spaces.values():
                if space.type is not TargetType.PARAMETER or space.target is None or space.mask is None:
                    continue
                if space.apply_method in ("mul", "movement_mul", "slim_mul"):
                    space.target.copy_(wrapper._apply_mask_helper(space.target, space))
            for name, parameter in wrapper.named_parameters(recurse=False):
                if name.endswith("_slim_factor"):
                    parameter.fill_(1)

    # -- compress --------------------------------------------------------------------------------

    def compress(self, max_steps: int | None = None, max_epochs: int | None = None) -> nn.Module:
        """Train, while the fused compressors prune or quantize.

        Args:
            max_steps: optimizer steps; or
            max_epochs: epochs.

        Returns:
            The user's model, wrapped.

        Raises:
            InputError: arguments, data or model cannot be used.
            TrainingError: the loss is not finite. Whatever is raised, the weights are as they were.
        """
        self._compress_by_evaluator(max_steps, max_epochs)
        model: nn.Module = self.bound_model
        return model

    def _begin(self, evaluator: Evaluator, max_steps: int | None, max_epochs: int | None) -> Training:
        per_epoch = steps_per_epoch(evaluator, None)
        steps = in_steps(max_steps, max_epochs, per_epoch)
        for name, least in self._too_short(steps):
            raise InputError(
                f"compress: {steps} steps are over before {name} has pruned to its target, which takes {least}; give "
                f"max_steps={least} or more"
            )
        training = Training(self.bound_model, self.loss, self.take_batch, student=self._student)
        training.count_epochs(steps, per_epoch)
        return training

    def _too_short(self, steps: int | None) -> list[tuple[str, int]]:
        """Pruners that do not reach their targets in that many steps, and how many each takes; none if unknown."""
        needed = [(type(other).__name__, _steps_needed(other)) for other in self.fused_compressors]
        return [(name, least) for name, least in needed if steps is not None and steps < least]

    def _fuse_postprocess(self, evaluator: Evaluator) -> None:
        assert self._training is not None
        steps = self._training.step
        short = self._too_short(steps)
        for name, least in short:
            _logger.warning(
                "training ended at step %d, before %s had pruned to its target; compress again, with max_steps=%d or "
                "more",
                steps,
                name,
                least,
            )
        if not short:
            self._log_unmasked()
        self._bake()
        sync_buffers(self._wrappers().values())


def _selected(model: nn.Module, config_list: list[dict[str, Any]]) -> list[str]:
    """Names of the modules that a config_list selects, in the model's order."""
    if not isinstance(config_list, list):
        raise InputError("config_list: give a list of NNI's dicts, or [] for 'auto'")
    names: set[str] = set()
    for entry in config_list:
        check_schema("distillation", "config_list", entry)
        targets = [target for target in entry.get("target_names", ()) if not target.startswith("_input_")]
        if idle := sorted(set(entry) - {*_SELECTING, "target_names"}) + targets:
            raise InputError(
                f"config_list: {', '.join(idle)} has no effect: entries select modules, whose inputs are the T_j; "
                "weigh the terms by distillation= and hsic="
            )
        selecting = {key: value for key, value in entry.items() if key in _SELECTING}
        names |= set(select_modules(model, "config_list", selecting))
    return [name for name, _ in model.named_modules() if name in names]


def _steps_needed(other: Compressor) -> int:
    """Training steps until a pruner has made its last mask."""
    if hasattr(other, "bound_pruner"):
        return int(other.interval_steps * other.total_times)
    return int(getattr(other, "cooldown_begin_step", None) or getattr(other, "training_steps", None) or 0)
