"""`PwoAGroupPruner`: the door into Torch-Pruning."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from .._random import seeded
from ..config import ADMMConfig, PwoAConfig
from ..method.admm import ADMM
from ..method.allocation import ALLOCATIONS, Allocation
from ..method.callback import Callback
from ..method.compression import Compression
from ..removal.inputs import call_saying_where, check_model, one_line, tensors_of
from .checks import (
    check_finite,
    check_layers,
    check_no_inference,
    check_options,
    check_ratio,
    check_reached,
    keyed_by_module,
    makes_output,
    modules_named,
)
from .coupling import MIXING, Axis, Coupling, channel_scores, inputs_of, parts_of
from .graph import (
    Adapt,
    Removal,
    Tracing,
    adapt_sizes,
    check_forward,
    keep_history,
    kept_as_before,
    removed_from,
    replay,
)
from .importance import PwoAImportance, normalised
from .run import ChannelRemoval, images_of, settings_of
from .selection import Candidates, Rounding, keep
from .twin import twin_of

__all__ = ["PwoAGroupPruner"]

_logger = logging.getLogger(__name__)

_TRACING = ("forward_fn", "output_transform", "unwrapped_parameters", "customized_pruners")
_FRESH = ("in_channel_groups", "out_channel_groups", "num_heads", "head_pruning_ratio_dict", "pruning_ratio_dict")
_ROOTS = (tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR)
_UPDATES = 4  # of the dual, in which rho comes to its cap
_LARGEST_RESIDUAL = 0.3  # at removal, without a warning
_LARGEST_DIFFERENCE = 1e-4  # of the output, where what is removed was 0 before


class PwoAGroupPruner(tp.pruner.BasePruner):
    """Remove channels from a robust network, drawn to 0 by ADMM on Torch-Pruning's dependency groups first.

    All weights that go with a channel are projected together: the channels of largest norm of W + U stay in each
    group, and what ADMM draws to 0 is what `step` removes. A weight that two groups share, by its output and by its
    input, is penalised once. The layers that make the model's output are found and left alone; their inputs shrink.

    ::

        pruner = PwoAGroupPruner(model, x, pruning_ratio=0.75)
        for epoch in range(5):
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
        ignored_layers: modules, parameters, names or patterns (``layer4.*``) or classes that stay whole, with all
            that is coupled to them.
        admm: for loops of your own: ``rho``, ``growth``, ``rho_max`` and ``rescale``, or a mapping of them.
            Where ``growth`` is None, rho comes to its cap at the last of ``epochs`` calls of `update_regularizer`
            before each `step`, or after 4 dual updates where ``epochs`` is None too.
        adapt: a function that mends sizes which the model's own code holds (attributes such as ``num_heads``), called
            on the model once channels are gone.
        **options: Torch-Pruning's own: ``global_pruning``, ``isomorphic``, ``iterative_steps``,
            ``max_pruning_ratio``, ``pruning_ratio_dict``, ``num_heads``, ``unwrapped_parameters``... (see
            ``tp.pruner.BasePruner``). None of their objects is changed or shared.
        callbacks: told of the progress of `compress`, beside its progress bar.

    Attributes:
        run: the `Compression` of `compress`; None without a config.
        untouched: names of the layers that make the model's output.
        residual: ADMM's primal residual ``|W - Z| / |W|`` at the last `step`; None without ADMM.
        removals: all that was removed from the model so far, by pruners before this one too.
        own_removals: what this one removed.
        inputs_left: of the layers that lost inputs at the last `step`, the dimension of their input and the indices
            along it that are left.

    Raises:
        ValueError: model, inputs or options cannot be used; one line says why, and the model is as it was.
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
        ignored_layers: Sequence[Any] = (),
        admm: ADMMConfig | Mapping[str, Any] | None = None,
        adapt: Adapt | None = None,
        callbacks: Sequence[Callback] = (),
        **options: Any,
    ) -> None:
        check_model(model)
        check_options(options)
        if isinstance(admm, Mapping):
            admm = ADMMConfig(**admm)
        elif admm is not None and not isinstance(admm, ADMMConfig):
            raise ValueError(f"admm={admm!r}: give an ADMMConfig, or a mapping of its fields")
        if config is not None:
            given = {"pruning_ratio": pruning_ratio, "admm": admm, "ignored_layers": ignored_layers or None}
            given |= {name: options.get(name) for name in ("global_pruning", "iterative_steps")}
            pruning_ratio, ignored_layers = settings_of(config, model, given)
            options["global_pruning"] = config.allocation != "uniform"
            if example_inputs is None:
                example_inputs = images_of(config, model)
        elif example_inputs is None:
            raise ValueError("example_inputs is missing; give what the model's forward takes, a batch of images say")
        pruning_ratio = 0.5 if pruning_ratio is None else pruning_ratio
        check_ratio("pruning_ratio", pruning_ratio)
        if round_to is not None and (isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1):
            raise ValueError(f"round_to={round_to!r}: give a whole number of channels, as 8")
        if not torch.is_grad_enabled():
            raise ValueError("gradients are off (torch.no_grad), and Torch-Pruning traces by them; call this outside")
        ignored = modules_named(model, ignored_layers, "ignored_layers")
        options["global_pruning"] = options.get("global_pruning", False) or options.get("isomorphic", False)
        for name in _FRESH:
            options[name] = keyed_by_module(model, options.get(name) or {}, name)
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):  # each head loses as many
                options["out_channel_groups"].setdefault(module, module.num_heads)
        self.tracing = Tracing(
            example_inputs,
            **{name: options.pop(name) for name in _TRACING if name in options},
            ignored_params=[entry for entry in ignored if isinstance(entry, nn.Parameter)],
        )
        self.rounding, self.adapt, self.admm_config = Rounding(round_to or 1, round_up), adapt, admm or ADMMConfig()
        self.allocation: Allocation | None = None
        if options["global_pruning"]:
            self.allocation = ALLOCATIONS[
                "global" if config is None or config.allocation == "uniform" else config.allocation
            ]
        self._removed_before = removed_from(model)
        self.inputs_left: dict[str, tuple[int, Tensor]] = {}
        self.residual: float | None = None
        self._admm: ADMM | None = None

        twin, _ = twin_of(model)
        with torch.no_grad():
            outputs = tensors_of(
                call_saying_where(twin, example_inputs)
                if self.tracing.forward_fn is None
                else self.tracing.forward(twin, example_inputs)
            )
        if not outputs or not all(output.isfinite().all() for output in outputs):
            raise ValueError("model: its output on example_inputs is not finite; give a sound model and inputs")
        self._shapes = [output.shape for output in outputs]
        del twin
        roots = options.pop("root_module_types", [*_ROOTS])
        try:
            with kept_as_before(model):
                super().__init__(
                    model,
                    example_inputs,
                    PwoAImportance(),
                    pruning_ratio=pruning_ratio,
                    ignored_layers=ignored,
                    round_to=round_to,
                    forward_fn=self.tracing.forward,
                    output_transform=self.tracing.outputs,
                    unwrapped_parameters=self.tracing.unwrapped(),
                    customized_pruners=dict(self.tracing.customized_pruners or {}) or None,
                    root_module_types=[],  # it would go through all groups, to count channels that are not asked for
                    **options,
                )
        except Exception as error:
            self.tracing.graph(model)  # for its errors, which say where
            raise ValueError(f"model: Torch-Pruning cannot trace it ({one_line(error)})") from error
        self.DG.verbose, self.root_module_types = False, list(roots)
        check_reached(model, self.DG, self.ignored_layers)
        self.untouched: list[str] = []
        self._before: dict[tuple[str, str], int] = {}
        self._structure: list[Coupling] | None = None
        if self.prune_num_heads and len({*self.num_heads.values()}) > 1:
            raise ValueError(
                "prune_num_heads: num_heads differ; grouped-query attention is not supported, leave it out"
            )
        couplings = self._couplings()
        if self.untouched:
            _logger.info("the output is made by %s, whose outputs are left alone", ", ".join(self.untouched))
        if not couplings:
            raise ValueError("model: no layer is left to prune; shorten ignored_layers")
        check_layers(model, couplings)
        for coupling in couplings:
            for axis in coupling.axes:
                self._before[coupling.root, axis.kind] = axis.units
        plan = self._plan(self.iterative_steps)
        if not plan.removals():
            raise ValueError(
                f"pruning_ratio={pruning_ratio} with round_to={round_to} leaves every channel; raise the ratio, or "
                "round to fewer"
            )
        self._check_removal(plan)
        self.run: Compression | None = None
        self.callbacks = list(callbacks)
        if config is not None:
            self.run = Compression(model, config, ChannelRemoval(self, plan.tensors(model)))

    def compress(self) -> nn.Module:
        """ADMM on the groups, removal, and fine-tuning of what is left, as the config says.

        Returns:
            The model, in place: it has fewer channels, and its parameters are new.

        Raises:
            ValueError: there is no config, the data cannot be used, or channels are removed already.
            TrainingError: the loss is no number. Whatever is raised, the model is as it was, channels too.
        """
        if self.run is None:
            raise ValueError("compress: give PwoAGroupPruner a config=PwoAConfig(...) that says how to train")
        callbacks = list(self.callbacks)
        if self.run.config.progress:
            from ..progress import default_progress

            callbacks.append(default_progress())
        with seeded(self.run.config.seed):
            self.run.run(callbacks)
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
        for group in groups:
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
            raise ValueError(
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
                    candidates.append(Candidates(normalised(norms), axis.width, before, self.max_pruning_ratio))
                allocation = self.allocation if len(candidates) > 1 else None
                for number, which in zip(
                    numbers, keep(candidates, ratio, rounding=rounding, allocation=allocation), strict=True
                ):
                    kept[number][kind] = which
        return [
            [by_kind[axis.kind] for axis in coupling.axes] for coupling, by_kind in zip(couplings, kept, strict=True)
        ]

    def _values(self) -> dict[nn.Parameter, Tensor]:
        """W + U of the parameters that ADMM has; others count as they are."""
        if self._admm is None:
            return {}
        return {parameter: parameter.detach() + self.importance.duals[parameter] for parameter in self.importance.duals}

    @torch.no_grad()
    def _plan(self, step: int) -> _Plan:
        """The projection of W + U: what goes at a step of the iteration, from 1."""
        couplings, values = self._couplings(), self._values()
        scores = [channel_scores(coupling.parts, coupling.channels, values) for coupling in couplings]
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
        """Take channels' scores from W + U of this ADMM, made of `admm_problem`; from W alone where it is None."""
        self._admm = admm
        self._share_duals()

    def _share_duals(self) -> None:
        admm = self._admm
        self.importance.duals = (
            {} if admm is None else {parameter: admm.u[name] for name, parameter in admm.weights.items()}
        )

    def update_regularizer(self) -> None:
        """ADMM's dual update; the first call, and the first after a `step`, only projects. Before an epoch."""
        if self.current_step >= self.iterative_steps:
            self.use(None)
        elif self._admm is None:
            config, (weights, masks) = self.admm_config, self.admm_problem()
            updates = max(1, config.epochs - 1) if config.epochs else _UPDATES
            growth = config.growth or (config.rho_max / config.rho) ** (1 / updates)
            self.use(
                ADMM(weights, masks, rho=config.rho, growth=growth, rho_max=config.rho_max, rescale=config.rescale)
            )
        else:
            self._admm.dual_update()
            self._share_duals()

    def regularize(self, model: nn.Module | None = None, loss: Tensor | None = None) -> None:
        """Add ADMM's gradient to the weights' ``.grad``: after ``backward()`` (and ``unscale_``), before the step.

        Args:
            model, loss: Torch-Pruning's; not needed. The model is the pruner's own, or a wrapper of it.

        Raises:
            RuntimeError: `update_regularizer` was not called before.
            ValueError: it is another model.
        """
        if model is not None and not any(module is self.model for module in model.modules()):
            raise ValueError(
                f"regularize: this {type(model).__name__} is not the model that the pruner was made of; give that one"
            )
        if self.current_step >= self.iterative_steps:
            return
        if self._admm is None:
            raise RuntimeError("regularize: call update_regularizer() before an epoch, and after every step()")
        self._admm.add_gradient()

    # -- removal ---------------------------------------------------------------------------------

    def step(self, interactive: bool = False) -> Iterator[Any] | None:
        """Remove channels from the model: exactly those that the projection of W + U has at 0.

        A warning is logged where ADMM has not drawn them to 0 yet.

        The removal is tried on a copy first, whose every tensor is compared with what the projection keeps, and which
        is run on the example inputs.

        Args:
            interactive: give Torch-Pruning's groups one by one, for you to call ``group.prune()`` on; prune each before
                you ask for the next.

        Returns:
            The groups, if interactive.

        Raises:
            ValueError: the smaller model does not run, or would not be what the projection keeps; a weight is not
                finite, or `torch.inference_mode` is on; it is as it was.
        """
        if self.current_step >= self.iterative_steps:
            raise ValueError(
                f"step: all {self.iterative_steps} iterative_steps are done; make a new pruner to prune on"
            )
        check_no_inference("step")
        check_finite(self.model)
        plan = self._plan(self._next_step)
        self._check_removal(plan)
        if self._admm is not None:
            self.residual = self._admm.residual()
            _logger.info("primal residual |W - Z| / |W| at removal: %.4f", self.residual)
            self._warn_of_undrawn(plan, self._admm, self.residual)
        self.current_step += 1
        self.inputs_left = self._inputs_left([removal for removal, _ in plan.removals()])
        groups = self._removing(plan)
        if interactive:
            return groups
        expected = plan.tensors(self.model)
        for group in groups:
            group.prune()
        _check_same(self.model, expected)
        return None

    @torch.no_grad()
    def _removing(self, plan: _Plan) -> Iterator[Any]:
        asked = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        done = len(self.DG.pruning_history())
        for removal, coupling in plan.removals():
            function = coupling.group[0].dep.handler
            # Anew, since groups before may have shifted what it is coupled with.
            yield self.DG.get_pruning_group(coupling.module, function, list(removal.channels))
        removals = [
            Removal(name, bool(out), tuple(map(int, channels)))
            for name, out, channels in self.DG.pruning_history()[done:]
        ]
        keep_history(self.model, self.removals + removals)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(asked[name])
        for layer, heads in plan.heads_left(self.num_heads).items():
            self.num_heads[layer] = self.out_channel_groups[layer] = heads
        adapt_sizes(self.model, self.adapt)
        self._structure = None
        self.use(None)

    @torch.no_grad()
    def _warn_of_undrawn(self, plan: _Plan, admm: ADMM, residual: float) -> None:
        """Log where ADMM has not converged: what goes is the projection of W + U now, Z that of its last update."""
        z = {parameter: admm.z[name] for name, parameter in self.model.named_parameters() if name in admm.z}
        undrawn = removed = 0
        for coupling, kept in zip(plan.couplings, plan.kept, strict=True):
            gone = coupling.removed(kept)
            left = channel_scores(coupling.parts, coupling.channels, z)
            removed += int(gone.sum())
            undrawn += int((left.cpu()[gone.cpu()] > 0).sum())
        if undrawn or residual > _LARGEST_RESIDUAL or admm.rho < admm.rho_max * (1 - 1e-6):
            _logger.warning(
                "%d of %d channels removed were not drawn to 0 (residual %.2f, rho %.3g of %.3g): train ADMM longer "
                "(admm=ADMMConfig(epochs=N)) or raise admm.rho",
                undrawn,
                removed,
                residual,
                admm.rho,
                admm.rho_max,
            )

    def _inputs_left(self, removals: Sequence[Removal]) -> dict[str, tuple[int, Tensor]]:
        names = {module: name for name, module in self.model.named_modules()}
        gone: dict[str, set[int]] = defaultdict(set)
        sizes: dict[str, tuple[int, int]] = {}
        for removal in removals:
            module = self.model.get_submodule(removal.layer)
            functions = self.DG.get_pruner_of_module(module)
            function = functions.prune_out_channels if removal.out else functions.prune_in_channels
            for reader, dim, indices in inputs_of(self.DG.get_pruning_group(module, function, list(removal.channels))):
                gone[names[reader]].update(indices)
                sizes[names[reader]] = dim, self.DG.get_in_channels(reader)
        device = next(self.model.parameters()).device
        return {
            name: (dim, torch.tensor([i for i in range(size) if i not in gone[name]], device=device))
            for name, (dim, size) in sizes.items()
        }

    def done_before(self, removals: Sequence[Removal]) -> None:
        """Remove what another pruner of the same model has removed, at its last step.

        Raises:
            ValueError: the model has no such channels.
        """
        try:
            self.inputs_left = self._inputs_left(removals)
        except (AttributeError, KeyError, IndexError) as error:
            raise ValueError(f"the model has no such channels ({one_line(error)})") from error
        replay(self.model, self.DG, removals, self.adapt)
        keep_history(self.model, [*self._removed_before, *removals])
        self.current_step, self._structure = self.iterative_steps, None
        self.use(None)

    def begin_anew(self) -> None:
        """Forget all removals, once the model has its channels again."""
        self.DG = self.tracing.on(next(self.model.parameters()).device).graph(self.model)
        keep_history(self.model, self._removed_before)
        self.current_step, self._structure, self.inputs_left = 0, None, {}
        self.num_heads |= self.init_num_heads
        self.out_channel_groups |= self.init_num_heads
        self.use(None)

    def _check_removal(self, plan: _Plan) -> None:
        """Try the removal on a copy.

        Raises:
            ValueError: it fails, or does not remove what the plan does.
        """
        twin, memo = twin_of(self.model)
        tracing = self.tracing.on(next(twin.parameters()).device).of_copy(memo)
        expected = plan.tensors(self.model)
        zeroed = plan.zeroed(self.model, twin, tracing)
        try:
            replay(twin, tracing.graph(twin), [removal for removal, _ in plan.removals()], self.adapt)
        except (AssertionError, RuntimeError, IndexError) as error:
            raise ValueError(f"model: Torch-Pruning cannot remove these channels ({error})") from error
        outputs = check_forward(twin, tracing, self._shapes)
        _check_same(twin, expected)
        largest = max(max(float(output.abs().max()) for output in zeroed), 1e-30)
        worst = max(float((one - other).abs().max()) for one, other in zip(zeroed, outputs, strict=True))
        if not worst <= _LARGEST_DIFFERENCE * largest and not plan.mixing:
            raise ValueError(
                f"model: taking channels out is not what zeroing them is (the outputs differ by {worst / largest:.1e} "
                "of the largest): its code shuffles channels or computes with all of them together, which "
                "Torch-Pruning does not see; list these layers in ignored_layers"
            )


@dataclass
class _Plan:
    """What stays of each group: the projection's kept set.

    Attributes:
        couplings: the groups.
        kept: units that stay, for each axis of each.
    """

    couplings: list[Coupling]
    kept: list[list[Tensor]]

    def removals(self) -> list[tuple[Removal, Coupling]]:
        found = []
        for coupling, kept in zip(self.couplings, self.kept, strict=True):
            gone = coupling.removed(kept)
            if gone.any():
                indices = torch.tensor(list(coupling.group[0].idxs))[gone]
                found.append((Removal(coupling.root, coupling.out, tuple(indices.tolist())), coupling))
        return found

    @property
    def mixing(self) -> list[str]:
        """Layers that compute with all channels together, in groups that lose some."""
        return [name for _, coupling in self.removals() for name in coupling.mixing]

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

    def heads_left(self, num_heads: Mapping[nn.Module, int]) -> dict[nn.Module, int]:
        """Heads of attention layers that lost some."""
        left = {}
        for coupling, kept in zip(self.couplings, self.kept, strict=True):
            for axis, keep_units in zip(coupling.axes, kept, strict=True):
                if axis.kind == "heads":
                    for item in coupling.group:
                        if item.dep.target.module in num_heads:
                            left[item.dep.target.module] = int(keep_units.sum())
        return left


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
            raise ValueError(
                f"{name}: Torch-Pruning takes out other channels than the projection has at 0 "
                f"({tuple(parameter.shape)}, not {tuple(expected[name].shape)}); list its layer in ignored_layers"
            )
