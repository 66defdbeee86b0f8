"""The training loop. ``phases`` say when to prune, ``targets`` what; ``loss`` has the loss."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import _ranks
from .._devices import dtype_of
from .._modes import train_mode
from .._network import check_trainable
from .._section import Section
from .._wrapped import network_or_ddp, unwrapped
from ..errors import InputError, PwoAError
from .agreement import agree_on_length, agree_on_start, first_images, prepare
from .allocation import LayerAllocation, allocation_table
from .averaging import averaging, check_equal, mean_of_ranks
from .batches import Batches
from .callback import Callback, Status, always_ended
from .checkpointing import blocks_of
from .compiled import CompiledForward, begin_step
from .finite import check_finite, check_loss
from .hidden import check_readable, forward_with_hidden
from .layers import warn_of_uncounted
from .layout import lay_out_both, layout_kept
from .loss import PwoALoss
from .optimizers import trained_parameters
from .perturbation import RADIUS_IMAGES
from .phases import ADMMPhase, GradualPhase, Phase
from .restore import restored_on_error
from .resuming import ResumableEpochs, seed_step
from .run import Run
from .schedule import Schedule
from .settings import TrainingConfig
from .snapshot import Snapshot, StateError, copy_into, tensors_of
from .targets import Target, mask_target

_logger = logging.getLogger(__name__)

_STEPS_BETWEEN_REPORTS = 10
_DTYPES = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Trainer:
    """Prunes one model by PwoA. Model and config are checked here, before training.

    Args:
        model: the robust network, ``(N, C, H, W)`` images to ``(N, classes)`` logits. It is pruned in place.
        config: the options.
        target: what to prune; None: weights, by masks.

    Attributes:
        loss: holds the frozen copy of the network, the `teacher`.
        target: what is pruned.
        batches, epochs: of the training images; of the whole run, set or by the number of batches.
        history: a dict per epoch: phase, epoch, loss, its terms by name, lr, rho, residual, seconds.
        schedule: of the last run; None before.

    Raises:
        InputError: the model, the data or the config cannot be used.
    """

    def __init__(self, model: nn.Module, config: TrainingConfig, target: Target | None = None) -> None:
        check_trainable(model)
        # A copy, sections too, validated again: what the user sets later does not reach this run.
        fields: dict[str, Any] = {
            name: value.model_copy(deep=True) if isinstance(value, Section) else value for name, value in config
        }
        config = type(config)(**fields)
        self.model, self.network, self.config = network_or_ddp(model), unwrapped(model), config
        agree_on_start(config, self.network)
        check_readable(self.model)
        if target is None:
            named = {name: getattr(config, name) for name in ("granularity", "allocation", "include", "exclude")}
            target = mask_target(self.network, config.sparsity, **named)
            warn_of_uncounted(self.network)
        self.target = target
        self.device = _ranks.device_here(config.device or next(model.parameters()).device)
        of_loss = ("distillation", "perturbation", "hsic", "adversarial", "eps", "pixel_range", "seed", "output")
        self.loss = PwoALoss(model, **{name: getattr(config, name) for name in of_loss}).to(self.device)
        self.loss.default_share = config.default_share
        self.loss.check_student(self.model)
        for name, layer in self.allocation.items():
            if layer.dense_because:
                _logger.warning("layer %s stays dense: %s", name, layer.dense_because)
        because = f"hsic.lambda_y={config.hsic.lambda_y:g} needs them; give (x, y) batches or set it to 0"
        self.batches = Batches(
            config.train_loader,
            batch_size=config.batch_size_for,
            device=self.device,
            dtype=dtype_of(model),
            pixel_range=config.pixel_range,
            labels_because=because if self.loss.needs_labels else None,
            reads_labels=self.loss.reads_labels,
            shared=True,
        )
        self._blocks = blocks_of(self.network) if config.checkpoint else []
        agree_on_length(self.batches)
        self.config, self.epochs = config.with_length(self.batches)
        self.loss.distillation = self.config.distillation  # whose temperature may depend on the number of images
        self.history: list[dict[str, object]] = []
        self.schedule: Schedule | None = None
        self._run: Run | None = None

    @property
    def teacher(self) -> nn.Module:
        return self.loss.teacher

    @property
    def allocation(self) -> dict[str, LayerAllocation]:
        """What each layer keeps, by the dense weights; after gradual pruning, by the weights at the hard prune."""
        return self.target.allocation

    @property
    def masks(self) -> dict[str, Tensor]:
        """``{layer: boolean mask}`` of the last cut or the hard prune; empty if channels are removed."""
        return self.target.masks

    @property
    def hidden_layers(self) -> list[str]:
        """Names of the modules whose inputs HSIC and feature distillation compare; empty before `fit`."""
        return self.loss.hidden_layers_of(self.model)

    @property
    def radius(self) -> float:
        """Of the perturbation, in pixel units; 0 before `fit`."""
        return self.loss.radius or 0.0

    @property
    def residual(self) -> float | None:
        """ADMM's primal residual at its end; None without ADMM."""
        return self.schedule.residual if self.schedule else None

    # -- the loop --------------------------------------------------------------------------------

    def fit(self, callbacks: Sequence[Callback] = (), resume: Snapshot | None = None) -> dict[str, Tensor]:
        """Prune the model in place.

        The caller seeds before (`PwoAPruner` does), also to resume. After an error the model is as it was.

        Args:
            callbacks: notified of the progress.
            resume: what `state` returned in a run of the same model, data and config. Resumes that run; bit-identical
                to an uninterrupted run on the same CPU.

        Returns:
            ``{layer: boolean mask}``; pruned weights are 0. Empty if channels are removed instead.

        Raises:
            InputError: data or model cannot be used, or the state is of other layers, phases or lengths.
            TrainingError: the loss is not finite.
        """
        if torch.is_inference_mode_enabled():
            raise InputError("torch.inference_mode is on, where nothing can be trained; call this outside")
        with (
            torch.enable_grad(),
            _ranks.explained(),
            restored_on_error(self.model, self.target.undo),
            layout_kept(self.model),
            always_ended(callbacks, self._end),
        ):
            run = self._prepare(resume)
            for callback in callbacks:
                callback.on_run(self)
                callback.on_start(run.status)
            while run.status.epoch < self.epochs:
                self._enter_epoch(run)
                self.loss.attack_if_due(self.epochs - run.status.epoch)
                self._epoch(run, callbacks)
            run.schedule.finish()
            self._adopt_parameters(run)
            self._check(run.status)
        self.target.discard_undo()
        return self.masks

    def _end(self, failed: bool) -> Status | None:
        """Forget what only a run needs, and after an error what it has computed."""
        run, self._run = self._run, None
        self.loss.network_forward = forward_with_hidden
        if failed:
            self.target.admm = None
            self.schedule = self.schedule if run is None else None
        return run.status if run else None

    def _epoch(self, run: Run, callbacks: Sequence[Callback]) -> None:
        status = run.status
        seen, started = 0, time.perf_counter()
        self.batches.set_epoch(status.epoch)
        for x, y in run.epochs.epoch(check=status.epoch == 0):
            self._step(run, x, y)
            seen += len(x) * _ranks.size()
            status.seconds = time.perf_counter() - run.began
            status.images_per_second = seen / (time.perf_counter() - started)
            if run.epochs.done % _STEPS_BETWEEN_REPORTS == 1:
                self._report(run, callbacks)
            for callback in callbacks:
                callback.on_step(status)
        if not run.epochs.done:
            raise InputError("train_loader gave no batch this time; give one that can be read again in every epoch")
        self._report(run, callbacks)
        status.epoch += 1
        names = ("lr", "rho", "residual", "seconds")
        entry = {"phase": status.phase, "epoch": status.epoch, "loss": status.loss, **status.terms}
        self.history.append(entry | {name: getattr(status, name) for name in names})
        run.epochs.end()
        run.sums = {}
        for callback in callbacks:
            callback.on_epoch_end(status)

    def _step(self, run: Run, x: Tensor, y: Tensor | None) -> None:
        assert run.optimizer is not None
        optimizer, status, phase = run.optimizer.optimizer, run.status, run.schedule.phase
        optimizer.zero_grad(set_to_none=True)
        self.loss.step = status.step
        if self.config.compile:
            begin_step(self.device)
        run.backward(self.loss, x, y, parts=self.config.accumulate, weight=self.batches.weight)
        run.scaler.unscale_(optimizer)
        run.schedule.after_backward()
        run.scaler.step(optimizer)
        run.scaler.update()
        status.lr = run.optimizer.next_lr()
        status.step += 1
        run.schedule.after_step()
        if phase.residual != status.residual:  # ADMM has updated Z and U
            check_equal(self.network, self.target, run.schedule, status.step)
        status.rho, status.residual = phase.rho, phase.residual
        seed_step(self.config.seed, status.step)

    def _report(self, run: Run, callbacks: Sequence[Callback]) -> None:
        status = run.status
        means = torch.stack(list(run.sums.values())).div(run.epochs.done).tolist()
        status.terms = mean_of_ranks(dict(zip(run.sums, means, strict=True)))
        status.loss = math.fsum(status.terms.values())
        check_loss(status)
        for callback in callbacks:
            callback.on_report(status)

    # -- phases ----------------------------------------------------------------------------------

    def _prepare(self, resume: Snapshot | None) -> Run:
        """Ready for the first step, or for the next one after a saved state."""
        config = self.config
        known = config.perturbation.known_radius(config.eps, config.pixel_range)
        images = first_images(self.batches, RADIUS_IMAGES if known is None else 2)
        if self.device.type == "cpu":
            lay_out_both(self.network, self.teacher, images[:2])
        self.model.to(self.device)
        prepare(self.loss, self.model, images)
        self.batches.classes = self.loss.classes
        if config.compile:
            self.loss.network_forward = CompiledForward()
        _logger.info("allocation by the dense weights\n%s", allocation_table(self.allocation))
        self.target.begin(images[:2])
        self.history = []
        train_mode(self.model)
        per_epoch = len(self.batches)
        status = Status(phase="", epochs=self.epochs, steps=self.epochs * per_epoch)
        dtype = _DTYPES[config.autocast]
        self._run = run = Run(
            schedule=self._make_schedule(per_epoch, status),
            epochs=ResumableEpochs(self.batches),
            student=averaging(self.model, images[:2], self.loss.logits),
            blocks=self._blocks,
            images=images[:2],
            parameters=trained_parameters(self.model),
            status=status,
            per_epoch=per_epoch,
            dtype=dtype,
            scaler=torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16),
        )
        self.schedule = run.schedule
        seed_step(config.seed, 0)
        if resume is None:
            run.schedule.start()
            self._enter_phase(run)
        else:
            try:
                self._resume(run, resume)
            except (torch.OutOfMemoryError, PwoAError):
                raise
            except (KeyError, TypeError, RuntimeError) as error:
                raise StateError(f"the saved state is incomplete ({error!r}); resume from another one") from error
        run.began = time.perf_counter() - run.status.seconds
        return run

    def _make_schedule(self, per_epoch: int, status: Status) -> Schedule:
        check = partial(self._check, status)
        phases = self.phases(per_epoch, check)
        tuning = status.steps - sum(phase.length for phase in phases)
        return Schedule(self.target, phases, tuning=tuning, check=check)

    def _check(self, status: Status) -> None:
        """Before a cut, and at the end: weights are finite, and the same in all processes."""
        with _ranks.together():
            check_finite(self.model, status.step)
        check_equal(self.network, self.target, self.schedule, status.step)

    def phases(self, per_epoch: int, check: Callable[[], None]) -> list[Phase]:
        """The phases before fine-tuning, each of whole epochs; a new one is a line here.

        Args:
            per_epoch: steps of an epoch.
            check: for phases to call before they cut; raises if a weight is not finite.
        """
        config, target = self.config, self.target
        return [
            ADMMPhase(target, config.admm, config.admm_epochs * per_epoch, per_epoch=per_epoch),
            GradualPhase(target, config.gradual, config.gradual_epochs * per_epoch, check=check),
        ]

    def _enter_epoch(self, run: Run) -> None:
        """Phases end with an epoch, even if the data gives fewer batches than its length."""
        end = 0
        for phase in run.schedule.phases[:-1]:
            end += phase.length // run.per_epoch
            if run.schedule.phase is phase and run.status.epoch >= end:
                run.schedule.advance()
                self._enter_phase(run)

    def _enter_phase(self, run: Run) -> None:
        self._adopt_parameters(run)
        phase = run.schedule.phase
        self.loss.use_hsic = phase.uses_hsic
        run.status.phase, run.status.rho, run.status.residual = phase.name, phase.rho, phase.residual
        run.choose_optimizer(self.config)

    def _adopt_parameters(self, run: Run) -> None:
        """If channels were removed, the parameters are new: they need a new optimizer and layout."""
        self.loss.student_channels = self.target.student_channels()
        parameters = trained_parameters(self.model)
        if {*map(id, parameters)} != {*map(id, run.parameters)}:
            for parameter in run.parameters:
                parameter.grad = None
            run.parameters, run.optimizer = parameters, None
            run.student = averaging(self.model, run.images, self.loss.logits)
            if self.device.type == "cpu":
                lay_out_both(self.network, self.teacher, run.images)

    # -- state -----------------------------------------------------------------------------------

    def state(self) -> Snapshot:
        """For `fit` to resume from; call it in a callback. TrainingError if a weight is not finite."""
        if (run := self._run) is None:
            raise RuntimeError("no run is in progress; call state() in a callback")
        check_finite(self.model, run.status.step)
        assert run.optimizer is not None
        facts = {
            "status": vars(run.status) | {"seconds": time.perf_counter() - run.began},
            "radius": self.radius,
            "hidden_layers": self.hidden_layers,
            "history": [dict(entry) for entry in self.history],
            "scaler": run.scaler.state_dict(),
            "processes": _ranks.size(),
        }
        return Snapshot.of(
            facts,
            model=Snapshot(tensors_of(self.network)),
            target=self.target.state(),
            schedule=run.schedule.state(),
            epochs=run.epochs.state(),
            sum=Snapshot(run.sums),
            optimizer=run.optimizer.state(),
        )

    def _resume(self, run: Run, saved: Snapshot) -> None:
        facts, status = saved.facts, Status(**saved.facts["status"])
        if (status.epochs, status.steps) != (run.status.epochs, run.status.steps):
            raise StateError(
                f"the saved state is of a run of {status.steps} steps in {status.epochs} epochs, and this one has "
                f"{run.status.steps} in {run.status.epochs}; resume with the same data and config"
            )
        vars(run.status).update(vars(status))  # in place: checks read it
        self.target.load_state(saved.part("target"))
        self._adopt_parameters(run)
        copy_into(tensors_of(self.network), saved.part("model").tensors, "parameters or buffers")
        run.schedule.load_state(saved.part("schedule"))
        self._enter_phase(run)
        assert run.optimizer is not None
        run.optimizer.load_state(saved.part("optimizer"))
        if facts["scaler"]:
            run.scaler.load_state_dict(facts["scaler"])
        if facts["hidden_layers"] != self.hidden_layers:
            raise StateError("the saved state looks at other hidden layers; resume with the same model and config")
        self.history = list(facts["history"])
        self.loss.set_radius(facts["radius"])
        run.sums = {name: total.to(self.device) for name, total in saved.part("sum").tensors.items()}
        run.epochs.load_state(saved.part("epochs"))
        if (before := facts.get("processes", 1)) != _ranks.size():
            _logger.warning("begun in %d processes, resumed in %d: not bit for bit", before, _ranks.size())
        if _ranks.rank():
            run.epochs.use_own_states(self.config.seed, status.step)
