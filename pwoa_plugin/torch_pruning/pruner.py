"""`PwoAGroupPruner`: the door into Torch-Pruning."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import _ranks
from .._devices import dtype_of
from .._modes import modes_kept
from .._network import check_trainable
from .._random import seeded
from .._section import as_section
from .._text import short
from .._weights import is_weighted
from .._wrapped import network_or_ddp
from ..config import ADMMConfig, ConfigError, PwoAConfig
from ..errors import InputError
from ..method.allocation import ALLOCATIONS
from ..method.batches import Batches
from ..method.callback import Callback, check_callbacks
from ..method.layers import prunable_layers
from ..method.phases import ADMMPhase
from ..method.probe import answer_of, classes_in
from ..method.sparsity import find_sparsity_set
from ..method.trainer import Trainer
from ..removal.inputs import check_model
from .checks import Fields
from .importance import PwoAImportance
from .planner import Planner
from .removals import Adapt, removals_from_json, removals_to_json
from .selection import Rounding
from .target import ChannelTarget

_logger = logging.getLogger(__name__)

_SET_BY_CONFIG = ("pruning_ratio", "ignored_layers", "admm", "global_pruning", "iterative_steps")
_CALLS = 5  # of update_regularizer(), in which rho reaches its cap if admm.epochs is not given


class PwoAGroupPruner(tp.pruner.BasePruner):
    """Remove channels from a robust network, after ADMM has drawn them to 0 on Torch-Pruning's dependency groups.

    All weights that go with a channel are projected together: ADMM draws W to the projection of W + U, in which the
    channels of largest norm stay in each group, and `step` removes what the projection of W has at 0. A weight that two
    groups share, by its output and by its input, is penalised once. The layers that produce the model's output are
    found and keep their outputs; their inputs shrink. Torch-Pruning's attributes (``DG``, ``num_heads``,
    ``current_step``...) are there, too.

    ::

        pruner = PwoAGroupPruner(model, x, pruning_ratio=0.75, admm={"epochs": 10})
        loss = PwoALoss(model, student_channels=pruner.student_channels)  # the teacher is the model as it is now
        for epoch in range(10):
            pruner.update_regularizer()
            for x, y in loader:
                loss(model, x, y).backward()
                pruner.regularize(model)
                optimizer.step()
                optimizer.zero_grad()
        pruner.step()  # then fine-tune, with a new optimizer: the parameters are new

    Or in one call, ADMM, removal and fine-tuning by PwoA's loss::

        config = PwoAConfig(sparsity=0.75, granularity="structured", train_loader=loader)
        PwoAGroupPruner(model, config=config).compress()

    Args:
        model: any network; `step` removes channels from it in place.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of keyword arguments for its forward, batch
            first, on its device. Default with ``config``: two of its images.
        config: of a whole run, for `compress`. Its ``sparsity`` is the ratio, and its ``allocation``, ``include``,
            ``exclude`` and ``admm`` replace the arguments of that purpose.
        pruning_ratio: share of the channels to remove, in (0, 1), 0.5 by default: of each group; of all together with
            ``global_pruning``, of those of one structure with ``isomorphic``.
        round_to: the number of channels left is a multiple of this.
        round_up: round to more channels, not to fewer (Torch-Pruning rounds down).
        ignored_layers: modules, parameters, names or patterns (``layer4.*``) or classes, one or several, that stay
            whole, with all that is coupled to them.
        admm: for your own loop: ``epochs``, ``rho``, ``growth``, ``rho_max`` and ``rescale``. ``epochs`` is the number
            of calls of `update_regularizer` before each `step`, 5 by default: rho reaches its cap at the last one,
            unless ``growth`` is given. With fewer calls `step` warns, with more the call after them.
        adapt: a function of the model that updates sizes which its own code holds (attributes such as ``num_heads``),
            called once channels are gone.
        callbacks: receive the progress of `compress`, as its progress bar does.
        **options: Torch-Pruning's own: ``global_pruning``, ``isomorphic``, ``iterative_steps``, ``max_pruning_ratio``,
            ``pruning_ratio_dict``, ``num_heads``, ``unwrapped_parameters``... (see ``tp.pruner.BasePruner``). Their
            objects are neither changed nor shared.

    Attributes:
        run: the `Trainer` of `compress`; None without a config.
        untouched: names of the layers that produce the model's output.
        residual: ADMM's primal residual ``|W - Z| / |W|`` at the last `step`; None without ADMM.
        removals: all that was removed from the model so far, by earlier pruners, too.
        own_removals: what this one removed.
        student_channels: ``{layer: (dimension of its input, indices along it that are left)}`` of the layers that lost
            inputs to this pruner, as numbered before; always the same dict. `PwoALoss` compares features by it.

    Raises:
        ValueError: model, inputs or options cannot be used; the model is as it was.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any = None,
        *,
        config: PwoAConfig | None = None,
        pruning_ratio: float | None = None,
        round_to: int | None = None,
        round_up: bool = False,
        ignored_layers: Any = None,
        admm: ADMMConfig | Mapping[str, Any] | None = None,
        adapt: Adapt | None = None,
        callbacks: Sequence[Callback] = (),
        **options: Any,
    ) -> None:
        # Not BasePruner's own __init__: that of the planner traces the model.
        model = network_or_ddp(model)
        if isinstance(model, DistributedDataParallel):
            raise InputError(
                "model is a DistributedDataParallel, which would hold the old parameters; prune, then wrap"
            )
        check_model(model)
        if "output" in options:
            raise InputError(
                "output: every output keeps its channels; give output= to PwoALoss, or set it in the config"
            )
        options = {name: value for name, value in options.items() if value is not None}
        ratio = 0.5 if pruning_ratio is None else pruning_ratio
        allocation, fields = None, Fields()
        if config is not None:
            check_trainable(model)
        if config is None:
            self.admm_config = _admm_of_a_loop(admm)
        else:
            given = {"pruning_ratio": pruning_ratio, "ignored_layers": ignored_layers, "admm": admm, **options}
            _check_config(config, [name for name in _SET_BY_CONFIG if given.get(name) is not None])
            self.admm_config = config.admm
            ratio = config.sparsity or 0.0
            chosen = prunable_layers(model, config.include, config.exclude)
            ignored_layers = [m for name, m in model.named_modules() if is_weighted(m) and name not in chosen]
            allocation = None if config.allocation == "uniform" else ALLOCATIONS[config.allocation]
            fields = Fields("sparsity", "exclude", "train_loader" if example_inputs is None else "example_inputs")
            if example_inputs is None:
                example_inputs = _images_of(config, model)
                _check_logits(model, example_inputs, config)
        self.planner = Planner(
            model,
            example_inputs,
            options,
            ratio=ratio,
            ignored_layers=() if ignored_layers is None else ignored_layers,
            rounding=Rounding(round_to or 1, round_up),
            adapt=adapt,
            allocation=allocation,
            fields=fields,
        )
        self.target = ChannelTarget(self.planner)
        self.residual: float | None = None
        self._phase: ADMMPhase | None = None
        self.callbacks = [*check_callbacks(callbacks)]
        self.run = None if config is None else Trainer(model, config, self.target)
        if self.run is not None:
            self.admm_config = self.admm_config.model_copy(update={"epochs": self.run.config.admm_epochs})

    def __getattr__(self, name: str) -> Any:
        """Torch-Pruning's attributes are the planner's."""
        if name == "planner":  # not made yet
            raise AttributeError(name)
        return getattr(self.planner, name)

    def compress(self) -> nn.Module:
        """ADMM on the groups, removal, and fine-tuning of what is left, as the config says.

        Returns:
            The model, changed in place: it has fewer channels, and its parameters are new.

        Raises:
            ValueError: there is no config, the data cannot be used, or channels are removed already.
            TrainingError: the loss is not finite. Whatever is raised, the model is as it was, channels too.
        """
        if self.run is None:
            raise InputError("compress: give PwoAGroupPruner a config=PwoAConfig(...) that says how to train")
        callbacks = list(self.callbacks)
        if self.run.config.progress and _ranks.is_main():
            from ..progress import default_progress

            callbacks.append(default_progress())
        with seeded(self.run.config.seed):
            self.run.fit(callbacks)
        self.residual = self.run.residual
        return self.run.model

    @property
    def student_channels(self) -> dict[str, tuple[int, Tensor]]:
        return self.target.student_channels()

    inputs_left = student_channels  # deprecated: the old name

    @property
    def importance(self) -> PwoAImportance:
        """The norms of W + U, with ADMM's present U."""
        admm = self.target.admm
        duals = {} if admm is None else admm.u
        return PwoAImportance({self.model.get_parameter(name): dual for name, dual in duals.items()})

    # -- ADMM ------------------------------------------------------------------------------------

    def update_regularizer(self) -> None:
        """ADMM's dual update, before an epoch; the first call, and the first after a `step`, only projects.

        A warning is logged once there are more calls than the growth of rho is planned for.
        """
        if self.planner.done:
            return
        config = self.admm_config
        if self._phase is None or self.target.admm is None:
            self._phase = ADMMPhase(self.target, config, config.epochs or _CALLS, interval=1)
            self._phase.begin()
            return
        self._phase.update()
        planned = max(2, self._phase.length)
        if config.growth is None and self.target.admm.updates == planned:
            _logger.warning(
                "update_regularizer: call %d, and rho has been at its cap since call %d, for admm.epochs is %s; set it "
                "to the number of calls before step(), as admm={'epochs': 10}",
                planned + 1,
                planned,
                config.epochs or f"not given (default: {planned} calls)",
            )

    def regularize(self, model: nn.Module | None = None, loss: Tensor | None = None) -> None:
        """Add ADMM's gradient to the weights' ``.grad``: after ``backward()`` (and ``unscale_``), before the step.

        Torch-Pruning gives ``model`` and ``loss``; neither is needed.

        Raises:
            RuntimeError: `update_regularizer` was not called before.
            ValueError: ``model`` is neither the pruner's own nor a wrapper of it.
        """
        if model is not None and not any(module is self.model for module in model.modules()):
            raise InputError(f"regularize: this {type(model).__name__} is not the pruner's model; give that one")
        if self.planner.done:
            return
        if self._phase is None or self.target.admm is None:
            raise RuntimeError("regularize: call update_regularizer() before an epoch, and after every step()")
        self._phase.after_backward()

    # -- removal ---------------------------------------------------------------------------------

    @torch.inference_mode(False)  # the smaller parameters can be trained
    def step(self, interactive: bool = False) -> Iterator[Any] | None:
        """Remove channels from the model: exactly those that the projection of the weights has at 0.

        Once ADMM has converged these are the ones that it drew to 0; before, a warning is logged. After the removal,
        each tensor is compared with what the projection keeps, and the output on the example inputs with that of the
        same channels at 0; where they differ, or the model does not run, all channels come back.

        Args:
            interactive: yield Torch-Pruning's groups one by one, for you to call ``group.prune()`` on, or not. What you
                prune is removed at once, in any order, whether or not you ask for all groups.

        Returns:
            The groups, if interactive.

        Raises:
            ValueError: the smaller model does not run, or would not be what the projection keeps, or a weight is not
                finite. Whatever is raised, the model is as it was.
        """
        plan = self.planner.next_plan()
        phase, groups = None if self.target.admm is None else self._phase, None
        if interactive:
            groups = self.target.groups_of(plan)
        else:
            self.target.carry_out(plan)
        if phase is not None:
            phase.finish()
        self._phase, self.residual = None, None if phase is None else phase.residual
        return groups

    def pruning_history(self) -> list[list[Any]]:
        """Torch-Pruning's history of what this pruner removed: ``[layer, whether filters, channels]``."""
        return removals_to_json(self.own_removals)

    def load_pruning_history(self, pruning_history: Sequence[Any]) -> None:
        """Remove what another pruner of the same model has removed. After an error the model is as it was."""
        self.target.remove(removals_from_json(pruning_history))


def _check_config(config: PwoAConfig, set_twice: Sequence[str]) -> None:
    if not isinstance(config, PwoAConfig):
        raise ConfigError(f"config={short(config)} is no config; give a PwoAConfig (PwoAConfig.from_yaml reads a file)")
    if find_sparsity_set(config.granularity).backend != "channels":
        raise ConfigError(
            f"granularity={config.granularity!r} masks weights: use pwoa_plugin.PwoAPruner, or set it to 'structured'"
        )
    if set_twice:
        raise ConfigError(
            f"{', '.join(set_twice)}: with a config, say it there (sparsity, allocation, include, exclude, admm; "
            "channels go at once)"
        )


def _images_of(config: PwoAConfig, model: nn.Module) -> Tensor:
    """Two of the config's images, ``(2, C, H, W)``, on the model's device; the random state comes back."""
    with seeded(config.seed):
        batches = Batches(
            config.train_loader,
            batch_size=config.batch_size_for,
            device=next(model.parameters()).device,
            dtype=dtype_of(model),
            pixel_range=config.pixel_range,
        )
        return _ranks.tensor_from_main(batches.first(2))


def _check_logits(model: nn.Module, images: Tensor, config: PwoAConfig) -> None:
    """InputError unless the model returns logits."""
    given = images.clone()
    with modes_kept(model):
        try:
            answer = answer_of(model.eval(), given)
        except InputError:
            return  # the planner says why its forward fails
    classes_in(answer, given, config.output)


def _admm_of_a_loop(given: ADMMConfig | Mapping[str, Any] | None) -> ADMMConfig:
    """The ADMM settings of the user's own loop, without those that the loop itself decides."""
    config, default = as_section(ADMMConfig, given, "admm"), ADMMConfig()
    for name in ("interval", "hsic", "optimizer", "schedule"):
        if getattr(config, name) != getattr(default, name):
            raise InputError(
                f"admm.{name}: your own loop decides that, and each update_regularizer() is a dual update; leave it out"
            )
    return config
