"""What a run made and how: the models of ``run.json`` and ``report.json``."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, model_validator

from .._checked import Amount, Measure, Record, checked
from ..errors import InputError
from ..method.admm import LARGEST_RESIDUAL
from ..pages.text import percent
from .cost import CostReport
from .evaluations import Evaluation, Network, for_headline, parsed, setting_of, strength
from .size import SizeReport

if TYPE_CHECKING:
    from ..robustness import Report

_FORMAT = 4  # of report.json; raise it when a reader of the old one would misread or refuse the new one
# 2 added `verdict` and `remarks`, which are derived; 3 `other_evaluations`, `folder`, `file_bytes`, and more derived;
# 4 `sparse_file_bytes`.
_READ = (1, 2, 3, 4)

_MOST = {"classes": 100_000, "channels": 1_000}  # of a run's images

_Summand = Annotated[float, Field(ge=-1e100, le=1e100)]
Share = Annotated[float, Field(ge=0, le=1)]
Status = Literal["running", "finished", "interrupted", "failed"]


class ModelReport(Record):
    """The network that was pruned; ``notes`` say what was done to load it, such as prefixes removed."""

    arch: str
    checkpoint: str
    sha256: str  # of its parameters' and buffers' names and values
    parameters: Amount
    notes: tuple[str, ...] = ()


class LayerReport(Record):
    """One layer that was to be pruned, and how many weights its mask keeps."""

    name: str
    shape: tuple[Amount, ...]
    weights: Amount
    kept: Amount
    density: Share
    dense_because: str | None = None

    @model_validator(mode="after")
    def _check_kept(self) -> LayerReport:
        if self.kept > self.weights:
            raise ValueError(f"kept: {self.kept} are more than the {self.weights} weights")
        return self


class EpochReport(Record):
    """One epoch. The terms of the loss stand beside the other fields, by name.

    Attributes:
        phase: ``admm``, ``gradual`` or ``fine-tune``.
        epoch: of the whole run, from 1.
        rho, residual: of ADMM; None outside it.
        sparsity: share of the prunable weights that are 0.
        clean: accuracy on the validation images; None without.
        agreement: with the teacher on perturbed validation images: 1 minus the total variation distance of the two
            networks' probabilities, mean over images; None without.
        seconds: from the start of training to the end of this epoch.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Summand] = Field(init=False)

    phase: str
    epoch: Annotated[Amount, Field(gt=0)]
    loss: _Summand
    lr: Measure
    rho: Measure | None = None
    residual: Measure | None = None
    sparsity: Share
    clean: Share | None = None
    agreement: Share | None = None
    seconds: Measure

    @property
    def terms(self) -> dict[str, float]:
        """The summands of the loss, weighted and signed."""
        return self.__pydantic_extra__


class ValidationReport(Record):
    """The images that epochs are compared on, and the clean accuracy of the network before pruning."""

    images: Annotated[Amount, Field(gt=0)]
    dense_clean: Share


class BestEpoch(Record):
    """The epoch whose weights were kept; no attack was used to choose it. See `EpochReport`."""

    epoch: Annotated[Amount, Field(gt=0)]
    agreement: Share | None = None
    clean: Share | None = None


class _Run(Record):
    """What ``run.json`` and ``report.json`` share; see `RunReport`."""

    started: str
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    config: dict[str, JsonValue]
    versions: dict[str, str]
    command: tuple[str, ...]
    device: str
    model: ModelReport
    layers: tuple[LayerReport, ...]
    size: SizeReport | None = None
    cost: CostReport | None = None
    residual: Measure | None = None
    hidden_layers: tuple[str, ...] = ()
    chosen: dict[str, float] = Field(default_factory=dict)
    validation: ValidationReport | None = None
    best: BestEpoch | None = None


class RunFacts(_Run):
    """The content of ``run.json``, which grows with the run.

    Attributes:
        images: ``classes`` and ``channels`` of the data; empty where the network was given in Python.
        radius: of the perturbation; None before the first step.
        robustness: names of the files of the latest verdicts, by network; the folder may hold more.
    """

    format: Literal[1] = 1
    status: Status = "running"
    threads: Amount | None = None
    processes: Amount = 1
    images: dict[Literal["classes", "channels"], Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    radius: Measure | None = None
    robustness: dict[Network, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_images(self) -> RunFacts:
        for name in _MOST if self.images else ():
            if name not in self.images:
                raise ValueError(f"images.{name} is missing")
            if self.images[name] > _MOST[name]:
                raise ValueError(f"images.{name}: {self.images[name]} is more than {_MOST[name]:,}")
        return self


class RunReport(_Run):
    """A run: the content of ``report.json`` in its folder.

    Attributes:
        config: the `PwoAConfig`, as ``model_dump(mode="json")`` gives it.
        sparsity: share of the prunable weights that are pruned.
        size: None before the hard prune.
        file_bytes: of the file of the pruned network; None where there is none.
        sparse_file_bytes: of the run's sparse file (`save_sparse`); None where there is none.
        folder: of the run, as it was named.
        cost: before and after, where channels were removed; None otherwise.
        radius: of the perturbation, in pixel units.
        residual: of ADMM at the hard prune; None without ADMM, or before.
        hidden_layers: names of the modules whose inputs HSIC and feature distillation compare.
        chosen: fields that the config leaves open, and what the run made of them.
        validation: None without a validation split.
        best: None where no epoch has ended.
        robustness: what `Report.to_dict` gave, for the ``pruned`` network and the ``dense`` one, judged alike; either
            may be missing. Of several evaluations the strongest pair, see `strength`.
        other_evaluations: the others, the strongest first.
    """

    derived = ("verdict", "remarks", "warnings", "admm_converged", "adversarial_examples")

    name: str
    status: Status
    seconds: Measure
    allocation: str
    granularity: str
    sparsity: Share
    radius: Measure
    file_bytes: Amount | None = None
    sparse_file_bytes: Amount | None = None
    folder: str = ""
    epochs: tuple[EpochReport, ...] = ()
    robustness: dict[Network, dict[str, JsonValue]] = Field(default_factory=dict)
    other_evaluations: tuple[Evaluation, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> RunReport:
        _ = self.judged
        for i, evaluation in enumerate(self.other_evaluations):
            parsed(evaluation, f"other_evaluations.{i}")
        return self

    @cached_property
    def judged(self) -> dict[Network, Report]:
        """`robustness` as reports, the pruned network first."""
        return {
            name: parsed(Evaluation(network=name, report=self.robustness[name]), f"robustness.{name}")
            for name in sorted(self.robustness, reverse=True)
        }

    @property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations; those of the headline come first."""
        mine = [Evaluation(network=name, report=self.robustness[name]) for name in self.judged]
        return mine + list(self.other_evaluations)

    @property
    def dense_alike(self) -> Report | None:
        """Of the dense network, if it was judged like the pruned one: same images, same attacks, same settings."""
        pruned, dense = self.judged.get("pruned"), self.judged.get("dense")
        return dense if pruned and dense and setting_of(pruned) == setting_of(dense) else None

    @property
    def adversarial_examples(self) -> str:
        """Which adversarial examples training made: ``none``, or attack, radius and epochs."""
        section = self.config.get("adversarial")
        if not isinstance(section, dict):
            return "none"
        last, eps = section.get("epochs"), section.get("eps") or self.config.get("eps")
        when = "in all epochs" if last is None else f"in the last {last} epochs" if last != 1 else "in the last epoch"
        whose = ", with the teacher's classes" if section.get("classes") == "teacher" else ""
        return f"{section.get('attack')}, Linf eps = {eps:.4g}, {when}{whose}"

    @property
    def admm_converged(self) -> bool | None:
        """Whether ADMM had drawn the weights to their zeros at the hard prune; None without ADMM, or before.

        Its residual is small then, and where channels are removed, rho has reached its largest value, too.
        """
        if self.residual is None:
            return None
        section = self.config.get("admm")
        most = section.get("rho_max") if isinstance(section, dict) else None
        rho = next((epoch.rho for epoch in reversed(self.epochs) if epoch.rho is not None), None)
        grown = (
            self.granularity != "structured"
            or not isinstance(most, (int, float))
            or rho is None
            or (rho >= most * (1 - 1e-6))
        )
        return self.residual <= LARGEST_RESIDUAL and grown

    def to_dict(self) -> dict[str, Any]:
        return {"format": _FORMAT, **super().to_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunReport:
        """The report that `to_dict` made ``content`` of, in this format or an older one."""
        found = content.get("format") if isinstance(content, Mapping) else None
        if found not in _READ:
            raise InputError(
                f"report.format: is {found!r}, this version reads up to {_FORMAT}; update pwoa_plugin, or give a report"
            )
        given = {key: value for key, value in content.items() if key not in ("format", *cls.derived)}
        return checked(cls, given, "report").arranged()

    def arranged(self) -> RunReport:
        """The same report with the strongest pair of all evaluations in ``robustness``."""
        chosen, rest = for_headline(self.evaluations, self.config.get("eps"))
        robustness = {evaluation.network: evaluation.report for evaluation in chosen}
        if robustness == self.robustness and tuple(rest) == self.other_evaluations:
            return self
        return type(self)(
            **{name: getattr(self, name) for name in type(self).model_fields}
            | {"robustness": robustness, "other_evaluations": tuple(rest)}
        )

    @property
    def verdict(self) -> str:
        """Whether the pruned network is less robust than the dense one; empty where that cannot be said."""
        dense = self.dense_alike
        if dense is None or not dense.config.images_sha256:
            return ""
        from ..robustness.comparison import verdict_text  # not at the top: brings ART

        return verdict_text("The pruned network", "the dense one", dense.paired_with(self.judged["pruned"]))

    @property
    def not_judged(self) -> str:
        """How to have the run judged."""
        eps, arch = self.config.get("eps"), self.model.arch
        from ..models.sources import names_code  # not at the top: brings torch

        own = f" --arch {shlex.quote(arch)}" if names_code(arch) else ""
        radius = eps if isinstance(eps, (int, float)) else "EPS"
        return (
            f"Not judged yet: pwoa evaluate {shlex.quote(self.folder) if self.folder else 'FOLDER'}{own} --eps {radius}"
        )

    @property
    def remarks(self) -> list[str]:
        """`warnings` and `information`."""
        return self.warnings + self.information

    @property
    def warnings(self) -> list[str]:
        """What a reader should know before relying on the numbers, a sentence or two each."""
        said: list[str] = []
        if self.status != "finished":
            said.append(f"The run is {self.status}: these are not the numbers of a finished run.")
        said += self._warnings_of_robustness()
        if self.admm_converged is False:
            said.append(
                f"ADMM had not converged at the hard prune (residual {self.residual:.2g}): weights that were not "
                "near 0 were removed. Train for more epochs with a larger admm.epochs, or raise admm.rho."
            )
        if self.epochs:
            unseen = sum(epoch.agreement is None for epoch in self.epochs)
            if self.validation is None or unseen == len(self.epochs):
                said.append("No epoch was validated: nothing was compared to choose the weights that were kept.")
            elif unseen:
                said.append(f"{unseen} of {len(self.epochs)} epochs have no validation, so the best may be among them.")
        return said

    @property
    def information(self) -> list[str]:
        """What else is worth knowing, a sentence or two each."""
        said = [] if "pruned" in self.judged else [self.not_judged]
        dense = [layer for layer in self.layers if layer.dense_because]
        if dense:
            named = "; ".join(f"{layer.name} ({layer.dense_because})" for layer in dense[:3])
            more = f"; and {len(dense) - 3} more" if len(dense) > 3 else ""
            said.append(f"Left dense: {named}{more}.")
        return said + list(self.model.notes)

    def _warnings_of_robustness(self) -> list[str]:
        pruned = self.judged.get("pruned")
        if pruned is None:
            return []
        eps = self.config.get("eps")
        said = pruned.caveats()
        if self.dense_alike is None:
            if any(evaluation.network == "dense" for evaluation in self.evaluations):
                said.append(
                    "Pruned and dense were not judged alike (images, eps, attacks or seed): do not compare them."
                )
            else:
                said.append("The dense network was not judged: what pruning cost in robustness is not known.")
        stronger = [it.judged for it in self.other_evaluations if it.network == "pruned"]
        stronger = [it for it in stronger if strength(it, eps) > strength(pruned, eps)]
        if stronger:
            it = max(stronger, key=lambda it: strength(it, eps))
            said.append(
                f"A stronger evaluation, of the pruned network alone, found {percent(it.worst_case.accuracy)} in the "
                f"worst case ({it.config}): judge the dense network like it (--dense)."
            )
        if isinstance(eps, (int, float)) and not math.isclose(eps, pruned.config.eps):
            said.append(f"Pruned for eps = {eps:g}, judged at eps = {pruned.config.eps:g}.")
        for name, judged in self.judged.items():
            said += [f"Alarm, {name} network: {alarm}" for alarm in judged.alarms or ()]
        return said + [f"{note.rstrip('.')}." for note in pruned.notes]
