"""`PwoAGroupPruner`: the door into Torch-Pruning."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from .._random import seeded
from .._text import named
from ..config import ADMMConfig, PwoAConfig
from ..errors import InputError
from ..method.admm import ADMM
from ..method.allocation import ALLOCATIONS, Allocation
from ..method.callback import Callback
from ..method.trainer import Trainer
from ..removal.groups import grouping_told
from ..removal.inputs import call_saying_where, check_model, copy_of, tensors_of
from .checks import (
    CONFIGS_WORDS,
    check_count,
    check_finite,
    check_kind,
    check_layers,
    check_no_inference,
    check_ratio,
    check_reached,
    checked_options,
    in_words,
    keyed_by_module,
    makes_output,
    modules_named,
    root_types,
)
from .coupling import MIXING, Axis, Coupling, channel_scores, inputs_of, parts_of
from .graph import (
    Adapt,
    ChosenGroup,
    Removal,
    Tracing,
    check_forward,
    keep_history,
    kept_as_before,
    removals_from_json,
    removals_to_json,
    removed_from,
    replay,
    structure_of,
    to_take_out,
)
from .importance import PwoAImportance, normalised
from .run import ChannelRemoval, admm_of_a_loop, images_of, settings_of
from .selection import Candidates, Rounding, keep

__all__ = ["PwoAGroupPruner"]

_logger = logging.getLogger(__name__)

_TRACING = ("forward_fn", "output_transform", "unwrapped_parameters", "customized_pruners")
_FRESH = ("in_channel_groups", "out_channel_groups", "num_heads", "head_pruning_ratio_dict", "pruning_ratio_dict")
_ROOTS = (tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR)
_UPDATES = 4  # of the dual, in which rho comes to its cap where nobody says how many there will be
_LARGEST_RESIDUAL = 0.3  # at removal, without a warning
_LARGEST_DIFFERENCE = 1e-4  # of the output, where what is removed was 0 before


class PwoAGroupPruner(tp.pruner.BasePruner):
    """Remove channels from a robust network, drawn to 0 by ADMM on Torch-Pruning's dependency groups first.

    All weights that go with a channel are projected together: ADMM draws W to the projection of W + U, where the
    channels of largest norm stay in each group, and `step` removes what the projection of W has at 0. A weight that two
    groups share, by its output and by its input, is penalised once. The layers that make the model's output are found
    and left alone; their inputs shrink.

    ::

        pruner = PwoAGroupPruner(model, x, pruning_ratio=0.75, admm={"epochs": 10})
        loss = PwoALoss(model, kept=pruner.inputs_left)  # the teacher is the model as it is now
        for epoch in range(10):
            pruner.update_regularizer()
            for x, y in loader:
                loss(model, x, y).backward()
                pruner.regularize(model)
                optimizer.step()
                optimizer.zero_grad()
        pruner.step()  # then train on, with a new optimizer: parameters are new

    Or in one call, ADMM, removal and fine-tuning by the core's loss::

        config = PwoAConfig(sparsity=0.75, granularity="structured", train_loader=loader)
        PwoAGroupPruner(model, config=config).compress()

    Args:
        model: any network; `step` takes channels out of it in place.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of keyword arguments for its forward, batch
            first, on its device. With ``config``, two of its images unless given.
        config: of a whole run, for `compress`; its ``sparsity`` is the ratio, and its ``allocation``, ``include``,
            ``exclude`` and ``admm`` stand for the arguments of that purpose.
        pruning_ratio: share of the channels of each group to remove, in (0, 1); of all together with
            ``global_pruning``, of those of one structure with ``isomorphic``.
        round_to: channels left are a multiple of this.
        round_up: round to more channels, not to fewer (Torch-Pruning rounds down).
        ignored_layers: modules, parameters, names or patterns (``layer4.*``) or classes, one or several, that stay
            whole, with all that is coupled to them.
        admm: for loops of your own: ``epochs``, ``rho``, ``growth``, ``rho_max`` and ``rescale``, or a mapping of them.
            ``epochs`` are the calls of `update_regularizer` before each `step`, 5 unless given: at the last one rho
            comes to its cap, unless ``growth`` is given. With fewer calls `step` warns, with more the call after them.
        adapt: a function that mends sizes which the model's own code holds (attributes such as ``num_heads``), called
            on the model once channels are gone.
        **options: Torch-Pruning's own: ``global_pruning``, ``isomorphic``, ``iterative_steps``,
            ``max_pruning_ratio``, ``pruning_ratio_dict``, ``num_heads``, ``unwrapped_parameters``... (see
            ``tp.pruner.BasePruner``). None of their objects is changed or shared.
        callbacks: told of the progress of `compress`, beside its progress bar.

    Attributes:
        run: the `Trainer` of `compress`; None without a config.
        untouched: names of the layers that make the model's output.
        residual: ADMM's primal residual ``|W - Z| / |W|`` at the last `step`; None without ADMM.
        removals: all that was removed from the model so far, by pruners before this one too.
        own_removals: what this one removed.
        inputs_left: of the layers that lost inputs to this pruner, the dimension of their input and the indices along
            it that are left, as numbered before; always the same dict. `PwoALoss` compares features by it (``kept=``).

    Raises:
        ValueError: model, inputs or options cannot be used; one line says why, and the model is as it was.
    """

    DG: Any
    current_step: int

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
        check_model(model)
        options = checked_options(options, model)
        check_kind("config", config, PwoAConfig, "a PwoAConfig")
        check_kind("round_up", round_up, bool, "True or False")
        check_kind("adapt", adapt, Callable, "a function of the model")
        check_kind("callbacks", callbacks, Sequence, "a list of them")
        for callback in callbacks or ():
            check_kind("callbacks: one", callback, Callback, "a Callback")
        if round_to is not None:
            check_count("round_to", round_to)
        if not torch.is_grad_enabled():
            raise InputError("gradients are off (torch.no_grad), and Torch-Pruning traces by them; call this outside")
        self._words: dict[str, str] = {}
        if config is None:
            self.admm_config = admm_of_a_loop(admm)
        else:
            nothing = isinstance(ignored_layers, Sequence) and not ignored_layers
            given = {
                "pruning_ratio": pruning_ratio,
                "admm": admm,
                "ignored_layers": None if nothing else ignored_layers,
            }
            given |= {name: options.get(name) for name in ("global_pruning", "iterative_steps")}
            pruning_ratio, ignored_layers = settings_of(config, model, given)
            options["global_pruning"] = config.allocation != "uniform"
            self.admm_config = config.admm.model_copy(update={"epochs": config.admm_epochs})
            self._words |= CONFIGS_WORDS
            if example_inputs is None:
                example_inputs = images_of(config, model)
                self._words["example_inputs"] = "train_loader"
        self.rounding, self.adapt = Rounding(round_to or 1, bool(round_up)), adapt
        self.allocation: Allocation | None = None
        options["global_pruning"] = options.get("global_pruning", False) or options.get("isomorphic", False)
        if options["global_pruning"]:
            self.allocation = ALLOCATIONS[
                "global" if config is None or config.allocation == "uniform" else config.allocation
            ]
        self._removed_before = removed_from(model)
        self.inputs_left: dict[str, tuple[int, Tensor]] = {}
        self.residual: float | None = None
        self._admm: ADMM | None = None
        self._is_random = False
        with in_words(self._words):
            self._trace(model, example_inputs, pruning_ratio, ignored_layers, options)
            plan = self._first_plan()
            self._check_removal(plan)
        self.callbacks = [*(callbacks or ())]
        self.run: Trainer | None = None
        if config is not None:
            self.run = Trainer(model, config, ChannelRemoval(self, plan.tensors(model)))

    def _trace(
        self, model: nn.Module, inputs: Any, ratio: float | None, ignored_layers: Any, options: dict[str, Any]
    ) -> None:
        """Let Torch-Pruning set itself up, by a trace of the model."""
        if inputs is None:
            raise InputError("example_inputs is missing; give what the model's forward takes, a batch of images say")
        ratio = 0.5 if ratio is None else ratio
        check_ratio("pruning_ratio", ratio)
        ignored = [] if ignored_layers is None else modules_named(model, ignored_layers, "ignored_layers")
        for name in _FRESH:
            options[name] = keyed_by_module(model, options.get(name, {}), name)
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):  # each head loses as many
                options["out_channel_groups"].setdefault(module, module.num_heads)
        self.tracing = Tracing(
            inputs,
            **{name: options.pop(name) for name in _TRACING if name in options},
            ignored_params=[entry for entry in ignored if isinstance(entry, nn.Parameter)],
        )
        twin = copy_of(model)
        with torch.no_grad():
            outputs = tensors_of(
                call_saying_where(twin, inputs)
                if self.tracing.forward_fn is None
                else self.tracing.forward(twin, inputs)
            )
        if not outputs or not all(output.numel() and output.isfinite().all() for output in outputs):
            raise InputError(
                "model: its output on example_inputs is empty or not finite; give a sound model and inputs"
            )
        self._shapes = [output.shape for output in outputs]
        del twin
        roots = root_types(options.pop("root_module_types", _ROOTS))
        try:
            with kept_as_before(model):
                super().__init__(
                    model,
                    inputs,
                    PwoAImportance(),
                    pruning_ratio=ratio,
                    ignored_layers=ignored,
                    round_to=self.rounding.to,
                    forward_fn=self.tracing.forward,
                    output_transform=self.tracing.outputs,
                    unwrapped_parameters=self.tracing.unwrapped(),
                    customized_pruners=dict(self.tracing.customized_pruners or {}) or None,
                    root_module_types=[],  # it would go through all groups, to count channels that are not asked for
                    **options,
                )
        except Exception as error:
            self.tracing.graph(model)  # for its errors, which say where
            raise InputError(f"model: Torch-Pruning cannot trace it ({named(error)})") from error
        self.DG.verbose, self.root_module_types = False, roots

    def _first_plan(self) -> _Plan:
        """What is to go in the end, as the weights are; where groups are looked at first."""
        check_reached(self.model, self.DG, self.ignored_layers)
        self.untouched: list[str] = []
        self._before: dict[tuple[str, str], int] = {}
        self._structure: list[Coupling] | None = None
        if self.prune_num_heads and len({*self.num_heads.values()}) > 1:
            raise InputError(
                "prune_num_heads: num_heads differ; grouped-query attention is not supported, leave it out"
            )
        couplings = self._couplings()
        if self.untouched:
            _logger.info("the output is made by %s, whose outputs are left alone", ", ".join(self.untouched))
        if not couplings:
            raise InputError(
                "model: no layer is left to prune, where those that make the output stay whole; shorten ignored_layers"
            )
        check_layers(self.model, couplings)
        for coupling in couplings:
            for axis in coupling.axes:
                self._before[coupling.root, axis.kind] = axis.units
        plan = self._plan(self.iterative_steps)
        if not plan.removals():
            by, fewer = "", ""
            if self.rounding.to > 1:
                by, fewer = f" with round_to={self.rounding.to}", ", or round to fewer"
            raise InputError(f"pruning_ratio={self.pruning_ratio}{by} leaves every channel; raise the ratio{fewer}")
        return plan

    def compress(self) -> nn.Module:
        """ADMM on the groups, removal, and fine-tuning of what is left, as the config says.

        Returns:
            The model, in place: it has fewer channels, and its parameters are new.

        Raises:
            ValueError: there is no config, the data cannot be used, or channels are removed already.
            TrainingError: the loss is no number. Whatever is raised, the model is as it was, channels too.
        """
        if self.run is None:
            raise InputError("compress: give PwoAGroupPruner a config=PwoAConfig(...) that says how to train")
        callbacks = list(self.callbacks)
        if self.run.config.progress:
            from ..progress import default_progress

            callbacks.append(default_progress())
        with seeded(self.run.config.seed):
            self.run.fit(callbacks)
        self.residual = self.run.residual
        model: nn.Module = self.model
        return model

    @property
    def removals(self) -> list[Removal]:
        return removed_from(self.model)

    @property
    def own_removals(self) -> list[Removal]:
        return self.removals[len(self._removed_before) :]

    # -- groups ----------------------------------------------------------------------------------

    def _couplings(self) -> list[Coupling]:
        """The groups as the model is now; kept until channels are removed."""
        if self._structure is not None:
            return self._structure
        found: list[Coupling] = []
        names = {module: name for name, module in self.model.named_modules()}
        groups = self.DG.get_all_groups(ignored_layers=self.ignored_layers, root_module_types=self.root_module_types)
        for group in _told(groups):
            if makes_output(group):
                self._leave_alone(group)
                continue
            attention, layers = self._is_atten_group(group)
            if attention:
                group = self._downstream_node_as_root_if_attention(group)
                if group is None:
                    continue
            parts, channels, module = list(parts_of(group)), len(group[0].idxs), group[0].dep.target.module
            axes = self._axes(group, channels, layers, names[module])
            if not parts or not axes:
                continue
            found.append(
                Coupling(
                    root=names[module],
                    module=module,
                    out=bool(self.DG.is_out_channel_pruning_fn(group[0].dep.handler)),
                    channels=channels,
                    axes=axes,
                    parts=parts,
                    group=group,
                    mixing=[item.dep.target.name for item in group if item.dep.target.type in MIXING],
                )
            )
        self._structure = found
        return found

    def _leave_alone(self, group: Any) -> None:
        for item in group:
            module = item.dep.target.module
            is_layer = isinstance(module, tuple(self.root_module_types))
            if is_layer and self.DG.is_out_channel_pruning_fn(item.dep.handler):
                self.ignored_layers.append(module)
                self.untouched.append(self.DG._module2name[module])

    def _axes(self, group: Any, channels: int, attention: list[nn.Module], name: str) -> list[Axis]:
        width = self._get_channel_groups(group)
        if channels % width:
            raise InputError(
                f"{name}: {channels} channels are no multiple of its {width} channel groups or heads; check them"
            )
        numbers = torch.arange(channels)
        axes = []
        if not attention or self.prune_head_dims:
            axes.append(Axis("channels", numbers % (channels // width), channels // width))
        if attention and self.prune_num_heads:
            heads = max(self.num_heads[layer] for layer in attention)
            axes.append(Axis("heads", numbers // (channels // heads), heads))
        return axes

    # -- which channels go -----------------------------------------------------------------------

    def _scopes(self, kind: str, step: int) -> dict[str, tuple[float, list[int]]]:
        """Groups that are ranked together: ``{scope: (ratio, numbers of groups)}``."""
        scopes: dict[str, tuple[float, list[int]]] = {}
        for number, coupling in enumerate(self._couplings()):
            if not any(axis.kind == kind for axis in coupling.axes):
                continue
            made = [
                item.dep.target.module
                for item in coupling.group
                if self.DG.is_out_channel_pruning_fn(item.dep.handler) and isinstance(item.dep.target.module, nn.Module)
            ]
            if kind == "heads":
                layers = [layer for layer in made if layer in self.num_heads]
                ratio = self.head_pruning_ratio_dict.get(layers[0], self.per_step_head_pruning_ratio)[step]
                name = "heads" if self.global_pruning else coupling.root
            else:
                own = next((layer for layer in made if layer in self._layer_to_scope), None)
                ratio = self.pruning_ratio_dict.get(own, self.per_step_pruning_ratio)[step]
                if own is not None:
                    name = self._layer_to_scope[own][0]
                elif self.isomorphic:
                    name = " ".join(
                        f"{type(item.dep.target.module).__name__}.{item.dep.handler.__name__}"
                        for item in coupling.group
                        if isinstance(item.dep.target.module, (nn.Module, nn.Parameter))
                    )
                else:
                    name = "all" if self.global_pruning else coupling.root
            scopes.setdefault(f"{kind} {name}", (ratio, []))[1].append(number)
        return scopes

    def _kept(self, scores: Sequence[Tensor], step: int) -> list[list[Tensor]]:
        """Units that stay, for each axis of each group.

        Args:
            scores: squared norms of its channels, for each group.
            step: of the iteration, from 1.
        """
        couplings = self._couplings()
        kept: list[dict[str, Tensor]] = [{} for _ in couplings]
        for kind in ("channels", "heads"):
            rounding = self.rounding if kind == "channels" else Rounding()
            for ratio, numbers in self._scopes(kind, step).values():
                candidates = []
                for number in numbers:
                    coupling = couplings[number]
                    axis = next(axis for axis in coupling.axes if axis.kind == kind)
                    norms = torch.zeros(axis.units).index_add_(0, axis.unit, scores[number]).sqrt()
                    before = self._before.get((coupling.root, kind), axis.units)
                    weight = getattr(coupling.module, "weight", None)
                    shape = (axis.units,) if weight is None else tuple(weight.shape)
                    candidates.append(Candidates(normalised(norms), axis.width, before, shape, self.max_pruning_ratio))
                allocation = self.allocation if len(candidates) > 1 else None
                for number, which in zip(
                    numbers, keep(candidates, ratio, rounding=rounding, allocation=allocation), strict=True
                ):
                    kept[number][kind] = which
        return [
            [by_kind[axis.kind] for axis in coupling.axes] for coupling, by_kind in zip(couplings, kept, strict=True)
        ]

    @torch.no_grad()
    def _plan(self, step: int) -> _Plan:
        """The projection of the weights alone, without the dual: what goes at a step of the iteration, from 1."""
        couplings = self._couplings()
        scores = [channel_scores(coupling.parts, coupling.channels) for coupling in couplings]
        return _Plan(couplings, self._kept(scores, step))

    # -- ADMM ------------------------------------------------------------------------------------

    @property
    def _next_step(self) -> int:
        return min(int(self.current_step) + 1, int(self.iterative_steps))

    def admm_problem(self) -> tuple[dict[str, nn.Parameter], Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]:
        """What `ADMM` is made of: all weights that are in a group, by name, and the joint projection's masks."""
        members = {part.parameter for coupling in self._couplings() for part in coupling.parts}
        weights = {name: parameter for name, parameter in self.model.named_parameters() if parameter in members}
        return weights, partial(self._masks, weights)

    @torch.no_grad()
    def _masks(self, weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        couplings = self._couplings()
        of = {parameter: values[name] for name, parameter in weights.items()}
        scores = [channel_scores(coupling.parts, coupling.channels, of) for coupling in couplings]
        masks = _Plan(couplings, self._kept(scores, self._next_step)).masks()
        return {name: masks[parameter] for name, parameter in weights.items()}

    def use(self, admm: ADMM | None) -> None:
        """Draw channels to 0 by this ADMM, made of `admm_problem`; by none where it is None."""
        self._admm = admm
        self._share_duals()

    def _share_duals(self) -> None:
        admm = self._admm
        self.importance.duals = (
            {} if admm is None else {parameter: admm.u[name] for name, parameter in admm.weights.items()}
        )

    def update_regularizer(self) -> None:
        """ADMM's dual update; the first call, and the first after a `step`, only projects. Before an epoch.

        A warning is logged once there are more calls than rho's way to its cap is planned for.
        """
        if self.current_step >= self.iterative_steps:
            self.use(None)
            return
        config = self.admm_config
        updates = max(1, config.epochs - 1) if config.epochs else _UPDATES
        if self._admm is None:
            weights, masks = self.admm_problem()
            growth = config.growth or (config.rho_max / config.rho) ** (1 / updates)
            self.use(
                ADMM(weights, masks, rho=config.rho, growth=growth, rho_max=config.rho_max, rescale=config.rescale)
            )
            return
        self._admm.dual_update()
        self._share_duals()
        if config.growth is None and self._admm.updates == updates + 1:
            _logger.warning(
                "update_regularizer: call %d, and rho has been at its cap since call %d, for admm.epochs is %s; set it "
                "to the number of calls before step(), as admm={'epochs': 10}",
                updates + 2,
                updates + 1,
                config.epochs or f"not given ({updates + 1} calls are taken for it)",
            )

    def regularize(self, model: nn.Module | None = None, loss: Tensor | None = None) -> None:
        """Add ADMM's gradient to the weights' ``.grad``: after ``backward()`` (and ``unscale_``), before the step.

        Args:
            model, loss: Torch-Pruning's; not needed. The model is the pruner's own, or a wrapper of it.

        Raises:
            RuntimeError: `update_regularizer` was not called before.
            ValueError: it is another model.
        """
        if model is not None and not any(module is self.model for module in model.modules()):
            raise InputError(
                f"regularize: this {type(model).__name__} is not the model that the pruner was made of; give that one"
            )
        if self.current_step >= self.iterative_steps:
            return
        if self._admm is None:
            raise RuntimeError("regularize: call update_regularizer() before an epoch, and after every step()")
        self._admm.add_gradient()

    # -- removal ---------------------------------------------------------------------------------

    def step(self, interactive: bool = False) -> Iterator[Any] | None:
        """Remove channels from the model: exactly those that the projection of the weights has at 0.

        Once ADMM has converged these are the ones that it drew to 0; where it has not yet, a warning is logged.

        The removal is tried on a copy first, whose every tensor is compared with what the projection keeps, and which
        is run on the example inputs.

        Args:
            interactive: give Torch-Pruning's groups one by one, for you to call ``group.prune()`` on, or not; what is
                removed counts at once, in whatever order, and whether or not you ask for all groups.

        Returns:
            The groups, if interactive.

        Raises:
            ValueError: the smaller model does not run, or would not be what the projection keeps; a weight is not
                finite, or `torch.inference_mode` is on. Whatever is raised, the model is as it was.
        """
        if self.current_step >= self.iterative_steps:
            raise InputError(
                f"step: all {self.iterative_steps} iterative_steps are done; make a new pruner to prune on"
            )
        check_no_inference("step")
        check_finite(self.model)
        with in_words(self._words):
            plan = self._plan(self._next_step)
            self._check_removal(plan)
            if self._admm is not None:
                self.residual = self._admm.residual()
                self._warn_of_undrawn(plan, self._admm, self.residual)
            removals = plan.removals()
            if interactive:
                self.current_step += 1
                self.use(None)  # also where none of them is pruned
                return self._groups(removals, self.current_step)
            expected = plan.tensors(self.model)
            with self._undone_on_error():
                self._take_out(removals)
                _check_same(self.model, expected)
                self.current_step += 1
        return None

    def _groups(self, removals: Sequence[Removal], step: int) -> Iterator[Any]:
        def check() -> None:
            if self.current_step != step:
                raise InputError("prune: this group is of an earlier step(); its channels have other numbers now")

        def prune(removal: Removal, indices: Sequence[int] | None) -> None:
            check()
            if indices is not None:
                removal = replace(removal, channels=tuple(int(i) for i in indices))
            with self._undone_on_error():
                self._take_out([removal])

        for removal in removals:
            check()
            group, _ = to_take_out(self.model, self.DG, removal)
            yield ChosenGroup(group, partial(prune, removal))

    def _take_out(self, removals: Sequence[Removal]) -> None:
        """Remove channels, and take them down."""
        replay(self.model, self.DG, removals, self.adapt, self._note)
        keep_history(self.model, [*self.removals, *removals])
        self._structure = None
        self.use(None)

    def _note(self, group: Any, channels: int) -> None:
        """Take down which inputs and heads are left once a group is gone."""
        gone: dict[nn.Module, tuple[int, set[int]]] = {}
        for reader, dim, indices in inputs_of(group):
            gone.setdefault(reader, (dim, set()))[1].update(indices)
        device = next(self.model.parameters()).device
        for reader, (dim, numbers) in gone.items():
            name, size = self.DG._module2name[reader], self.DG.get_in_channels(reader)
            _, left = self.inputs_left.get(name, (dim, torch.arange(size, device=device)))
            stays = torch.ones(size, dtype=torch.bool, device=device)
            stays[list(numbers)] = False
            self.inputs_left[name] = dim, left[stays]
        attention, layers = self._is_atten_group(group)
        if attention:
            heads = max(self.num_heads[layer] for layer in layers)
            of = torch.arange(channels) // (channels // heads)
            of[list(group[0].idxs)] = -1
            left_heads = len(of[of >= 0].unique())
            if left_heads < heads:
                for layer in layers:
                    self.num_heads[layer] = self.out_channel_groups[layer] = left_heads

    def remembered(self) -> Callable[[], None]:
        """What gives the model the channels back that it has now, and its own parameters; and sets this pruner back."""
        restore = structure_of(self.model)
        step, admm = self.current_step, self._admm
        counts = (self.inputs_left, self.num_heads, self.out_channel_groups)
        before = [dict(count) for count in counts]

        def undo() -> None:
            restore()
            self.DG = self.tracing.on(next(self.model.parameters()).device).graph(self.model)
            self.current_step, self._structure = step, None
            for count, content in zip(counts, before, strict=True):
                count.clear()
                count.update(content)
            self.use(admm)

        return undo

    @contextlib.contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        undo = self.remembered()
        try:
            yield
        except BaseException:
            undo()
            raise

    def pruning_history(self) -> list[list[Any]]:
        """Torch-Pruning's: what this pruner removed, as ``[layer, whether filters, channels]``."""
        return removals_to_json(self.own_removals)

    def load_pruning_history(self, pruning_history: Sequence[Any]) -> None:
        """Remove what another pruner of the same model has removed.

        Raises:
            ValueError: the model has no such channels; it is as it was.
        """
        removals = removals_from_json(pruning_history)
        with self._undone_on_error():
            self._take_out(removals)

    @torch.no_grad()
    def _warn_of_undrawn(self, plan: _Plan, admm: ADMM, residual: float) -> None:
        """Log where ADMM has not converged: what goes is the projection of W, Z that of W + U at its last update."""
        z = {parameter: admm.z[name] for name, parameter in self.model.named_parameters() if name in admm.z}
        undrawn = removed = 0
        for coupling, gone in plan.losing():
            removed += int(gone.sum())
            undrawn += int((channel_scores(coupling.parts, coupling.channels, z)[gone] > 0).sum())
        if undrawn or residual > _LARGEST_RESIDUAL or admm.rho < admm.rho_max * (1 - 1e-6):
            _logger.warning(
                "ADMM has not converged (residual %.2f, rho %.3g of %.3g, %d of %d channels removed not drawn to 0): "
                "train for more epochs, and say so in admm.epochs, or raise admm.rho",
                residual,
                admm.rho,
                admm.rho_max,
                undrawn,
                removed,
            )

    def _check_removal(self, plan: _Plan) -> None:
        """Try the removal on a copy.

        Raises:
            ValueError: it fails, or does not remove what the plan does.
        """
        memo: dict[int, Any] = {}
        twin = copy_of(self.model, memo)
        tracing = self.tracing.on(next(twin.parameters()).device).of_copy(memo)
        expected = plan.tensors(self.model)
        zeroed = plan.zeroed(self.model, twin, tracing)
        try:
            replay(twin, tracing.graph(twin), plan.removals(), self.adapt)
        except (AssertionError, RuntimeError, IndexError) as error:
            raise InputError(f"model: Torch-Pruning cannot remove these channels ({error})") from error
        outputs = check_forward(twin, tracing, self._shapes)
        _check_same(twin, expected)
        worst = _difference(zeroed, outputs)
        if not worst <= _LARGEST_DIFFERENCE and not plan.mixing and not self._answers_at_random(twin, tracing):
            raise InputError(
                f"model: taking channels out is not what zeroing them is (the outputs differ by {worst:.1e} "
                "of the largest): its code shuffles channels, or computes with all of them together in a function "
                "(F.layer_norm), which Torch-Pruning does not see; make that a module (nn.LayerNorm), or list the "
                "layers before in ignored_layers"
            )

    @torch.no_grad()
    def _answers_at_random(self, twin: nn.Module, tracing: Tracing) -> bool:
        """Whether outputs on the same inputs differ; it is told once that weights alone are compared then."""
        if not self._is_random:
            once, again = (tensors_of(tracing.forward(twin, tracing.inputs)) for _ in range(2))
            self._is_random = not _difference(once, again) <= _LARGEST_DIFFERENCE
            if self._is_random:
                _logger.warning(
                    "the model answers at random in eval mode: that it answers the same with channels removed as with "
                    "these at 0 is not checked"
                )
        return self._is_random


@dataclass
class _Plan:
    """What stays of each group: the projection's kept set.

    Attributes:
        couplings: the groups.
        kept: units that stay, for each axis of each.
    """

    couplings: list[Coupling]
    kept: list[list[Tensor]]

    def losing(self) -> Iterator[tuple[Coupling, Tensor]]:
        """Groups that lose channels, and ``(channels,)`` boolean: which."""
        for coupling, kept in zip(self.couplings, self.kept, strict=True):
            gone = coupling.removed(kept)
            if gone.any():
                yield coupling, gone

    def removals(self) -> list[Removal]:
        """What goes, group by group."""
        return [
            Removal(coupling.root, coupling.out, tuple(torch.tensor(list(coupling.group[0].idxs))[gone].tolist()))
            for coupling, gone in self.losing()
        ]

    @property
    def mixing(self) -> list[str]:
        """Layers that compute with all channels together, in groups that lose some."""
        return [name for coupling, _ in self.losing() for name in coupling.mixing]

    def _kept_positions(self) -> dict[nn.Parameter, dict[int, Tensor]]:
        """``{parameter: {dimension: boolean along it}}``, of all parameters in a group."""
        found: dict[nn.Parameter, dict[int, Tensor]] = defaultdict(dict)
        for coupling, kept in zip(self.couplings, self.kept, strict=True):
            gone = coupling.removed(kept)
            for part in coupling.parts:
                along = found[part.parameter].setdefault(
                    part.dim, torch.ones(part.parameter.shape[part.dim], dtype=torch.bool)
                )
                along[part.positions[gone[part.channels]]] = False
        return found

    def masks(self) -> dict[nn.Parameter, Tensor]:
        """The projection's masks: False where a weight goes with a channel that goes."""
        masks = {}
        for parameter, sides in self._kept_positions().items():
            mask = torch.ones_like(parameter, dtype=torch.bool)
            for dim, along in sides.items():
                mask &= along.to(parameter.device).view([-1 if i == dim else 1 for i in range(parameter.dim())])
            masks[parameter] = mask
        return masks

    @torch.no_grad()
    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """What the model's parameters are to be."""
        sides = self._kept_positions()
        found = {}
        for name, parameter in model.named_parameters():
            tensor = parameter.detach()
            for dim, along in sides.get(parameter, {}).items():
                tensor = tensor.index_select(dim, along.nonzero().flatten().to(tensor.device))
            found[name] = tensor
        return found

    @torch.no_grad()
    def zeroed(self, model: nn.Module, twin: nn.Module, tracing: Tracing) -> list[Tensor]:
        """What the model would answer with these channels at 0."""
        masks, own = self.masks(), {name: parameter.clone() for name, parameter in twin.named_parameters()}
        copies = dict(twin.named_parameters())
        for name, parameter in model.named_parameters():
            if parameter in masks:
                copies[name].mul_(masks[parameter])
        try:
            return tensors_of(tracing.forward(twin, tracing.inputs))
        finally:
            for name, tensor in own.items():
                copies[name].copy_(tensor)


def _difference(outputs: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest difference of two outputs, of the largest of the first."""
    largest = max(max(float(output.abs().max()) for output in outputs), 1e-30)
    return max(float((one - other).abs().max()) for one, other in zip(outputs, others, strict=True)) / largest


def _check_same(model: nn.Module, expected: Mapping[str, Tensor]) -> None:
    """The assertion that what is left is what the projection keeps.

    Raises:
        ValueError: it is not.
    """
    for name, parameter in model.named_parameters():
        same = parameter.shape == expected[name].shape and torch.equal(
            parameter.nan_to_num(), expected[name].nan_to_num()
        )
        if not same:
            raise InputError(
                f"{name}: Torch-Pruning takes out other channels than the projection has at 0 "
                f"({tuple(parameter.shape)}, not {tuple(expected[name].shape)}); list its layer in ignored_layers"
            )


def _told(groups: Iterable[Any]) -> Iterator[Any]:
    """The groups, one after another as they are asked for: what is left alone meanwhile begins none."""
    with grouping_told():
        yield from groups
