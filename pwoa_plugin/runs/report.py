"""What a run made and how: the models of ``run.json`` and ``report.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from .._checked import Record, checked
from ..errors import InputError
from ..pages.text import interval_text, percent, size_text
from .cost import CostReport
from .size import SizeReport

if TYPE_CHECKING:
    from ..robustness import Report

_FORMAT = 2  # of report.json; raise it when a reader of the old one would misread or refuse the new one
_READ = (1, 2)  # 2 added `verdict` and `remarks`, which are derived
_WIDE_INTERVAL = 0.05  # a wider 95 % interval deserves a remark

Network = Literal["pruned", "dense"]
Share = Annotated[float, Field(ge=0, le=1)]
Status = Literal["running", "finished", "interrupted", "failed"]


class ModelReport(Record):
    """The network that was pruned; ``notes`` say what was done to load it, such as prefixes removed."""

    arch: str
    checkpoint: str
    sha256: str  # of its parameters' and buffers' names and values
    parameters: NonNegativeInt
    notes: tuple[str, ...] = ()


class LayerReport(Record):
    """One layer that was to be pruned, and how many weights its mask keeps."""

    name: str
    shape: tuple[NonNegativeInt, ...]
    weights: NonNegativeInt
    kept: NonNegativeInt
    density: Share
    dense_because: str | None = None


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
    __pydantic_extra__: dict[str, float] = Field(init=False)

    phase: str
    epoch: PositiveInt
    loss: float
    lr: NonNegativeFloat
    rho: NonNegativeFloat | None = None
    residual: NonNegativeFloat | None = None
    sparsity: Share
    clean: Share | None = None
    agreement: Share | None = None
    seconds: NonNegativeFloat

    @property
    def terms(self) -> dict[str, float]:
        """The summands of the loss, weighted and signed."""
        return self.__pydantic_extra__


class ValidationReport(Record):
    """The images that epochs are compared on, and the clean accuracy of the network before pruning."""

    images: PositiveInt
    dense_clean: Share


class BestEpoch(Record):
    """The epoch whose weights were kept; no attack was used to choose it. See `EpochReport`."""

    epoch: PositiveInt
    agreement: Share | None = None
    clean: Share | None = None


class _Run(Record):
    """What ``run.json`` and ``report.json`` share; see `RunReport`."""

    started: str
    seed: NonNegativeInt
    config: dict[str, JsonValue]
    versions: dict[str, str]
    command: tuple[str, ...]
    device: str
    model: ModelReport
    layers: tuple[LayerReport, ...]
    size: SizeReport | None = None
    cost: CostReport | None = None
    residual: NonNegativeFloat | None = None
    hidden_layers: tuple[str, ...] = ()
    validation: ValidationReport | None = None
    best: BestEpoch | None = None


class RunFacts(_Run):
    """The content of ``run.json``, which grows with the run.

    Attributes:
        images: ``classes`` and ``channels`` of the data; empty where the network was given in Python.
        radius: of the perturbation; None before the first step.
        robustness: names of the files of the latest verdicts, by network.
    """

    format: Literal[1] = 1
    status: Status = "running"
    threads: int | None = None
    images: dict[Literal["classes", "channels"], PositiveInt] = Field(default_factory=dict)
    radius: NonNegativeFloat | None = None
    robustness: dict[Network, str] = Field(default_factory=dict)


class RunReport(_Run):
    """A run: the content of ``report.json`` in its folder.

    Attributes:
        config: the `PwoAConfig`, as ``model_dump(mode="json")`` gives it.
        sparsity: share of the prunable weights that are pruned.
        size: None before the hard prune.
        cost: before and after, where channels were removed; None otherwise.
        radius: of the perturbation, in pixel units.
        residual: of ADMM at the hard prune; None without ADMM, or before.
        hidden_layers: names of the modules whose inputs HSIC and feature distillation compare.
        validation: None without a validation split.
        best: None where no epoch has ended.
        robustness: what `Report.to_dict` gave, for the ``pruned`` network and the ``dense`` one; either may be missing.
    """

    derived = ("verdict", "remarks")

    name: str
    status: Status
    seconds: NonNegativeFloat
    allocation: str
    granularity: str
    sparsity: Share
    radius: NonNegativeFloat
    epochs: tuple[EpochReport, ...] = ()
    robustness: dict[Network, dict[str, JsonValue]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> RunReport:
        _ = self.judged
        return self

    @cached_property
    def judged(self) -> dict[Network, Report]:
        """`robustness` as reports, the pruned network first."""
        if not self.robustness:
            return {}
        from ..robustness import Report  # not at the top: brings ART

        reports: dict[Network, Report] = {}
        for name in sorted(self.robustness, reverse=True):
            try:
                reports[name] = Report.from_dict(self.robustness[name])
            except ValueError as error:
                raise InputError(f"robustness.{name}: {error}") from None
        return reports

    @property
    def dense_alike(self) -> Report | None:
        """Of the dense network, if it was judged like the pruned one: same images, same attacks, same settings."""
        pruned, dense = self.judged.get("pruned"), self.judged.get("dense")
        return dense if pruned and dense and _setting(pruned) == _setting(dense) else None

    def to_dict(self) -> dict[str, Any]:
        return {"format": _FORMAT, **super().to_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunReport:
        """The report that `to_dict` made ``content`` of, in this format or format 1."""
        found = content.get("format") if isinstance(content, Mapping) else None
        if found not in _READ:
            raise InputError(
                f"report.format: is {found!r}, this version reads up to {_FORMAT}; update pwoa_plugin, or give a report"
            )
        given = {key: value for key, value in content.items() if key not in ("format", *cls.derived)}
        return checked(cls, given, "report")

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
        eps = self.config.get("eps")
        return f"Not judged yet: pwoa evaluate FOLDER --eps {eps if isinstance(eps, (int, float)) else 'EPS'}"

    @property
    def remarks(self) -> list[str]:
        """What a reader should know before relying on the numbers, a sentence or two each."""
        said: list[str] = []
        if self.status != "finished":
            said.append(f"The run is {self.status}: these are not the numbers of a finished run.")
        said += self._remarks_on_robustness()
        if self.epochs:
            unseen = sum(epoch.agreement is None for epoch in self.epochs)
            if self.validation is None or unseen == len(self.epochs):
                said.append("No epoch was validated: nothing was compared to choose the weights that were kept.")
            elif unseen:
                said.append(f"{unseen} of {len(self.epochs)} epochs have no validation, so the best may be among them.")
        dense = [layer for layer in self.layers if layer.dense_because]
        if dense:
            named = "; ".join(f"{layer.name} ({layer.dense_because})" for layer in dense[:3])
            more = f"; and {len(dense) - 3} more" if len(dense) > 3 else ""
            said.append(f"Left dense: {named}{more}.")
        return said + list(self.model.notes)

    def _remarks_on_robustness(self) -> list[str]:
        pruned, dense = self.judged.get("pruned"), self.judged.get("dense")
        if pruned is None:
            return [self.not_judged]
        said: list[str] = []
        worst = pruned.worst_case
        if worst.high - worst.low > _WIDE_INTERVAL:
            said.append(
                f"Only {pruned.config.n_images:,} images were judged: the 95 % interval of the worst case is "
                f"{100 * (worst.high - worst.low):.1f} percentage points wide. Judge more to narrow it."
            )
        if pruned.autoattack is None:
            said.append("AutoAttack is not among the attacks: the worst case may be lower than shown.")
        if dense is None:
            said.append("The dense network was not judged: what pruning cost in robustness is not known.")
        elif self.dense_alike is None:
            said.append("Pruned and dense were not judged alike (images, eps, attacks or seed): do not compare them.")
        eps = self.config.get("eps")
        if isinstance(eps, (int, float)) and not math.isclose(eps, pruned.config.eps):
            said.append(f"Pruned for eps = {eps:g}, judged at eps = {pruned.config.eps:g}.")
        for name, judged in self.judged.items():
            said += [f"Alarm, {name} network: {alarm}" for alarm in judged.alarms or ()]
        return said + [f"{note.rstrip('.')}." for note in pruned.notes]


def headline(report: RunReport) -> list[str]:
    """How much smaller, and how robust: a sentence each."""
    said = []
    size = report.size
    if report.cost is not None:
        before, after = report.cost.dense, report.cost.pruned
        said.append(
            f"{before.parameters / max(1, after.parameters):.1f}x smaller: {after.parameters:,} of "
            f"{before.parameters:,} parameters are left, {before.macs / max(1, after.macs):.1f}x fewer "
            f"MACs, {size_text(before.file_bytes)} become {size_text(after.file_bytes)}."
        )
    elif size is not None and size.compression is not None:
        said.append(
            f"{size.compression:.1f}x smaller: {size.nonzero:,} of {size.weights:,} convolution and linear weights "
            f"are left, {size_text(size.dense_bytes)} become {size_text(size.sparse_bytes)}."
        )
    pruned, dense = report.judged.get("pruned"), report.dense_alike
    if pruned is not None:
        worst = pruned.worst_case
        against = f"; the dense network {percent(dense.worst_case.accuracy)}" if dense else ""
        said.append(
            f"Robust on {percent(worst.accuracy)} ({interval_text(worst.low, worst.high)}) of "
            f"{pruned.config.n_images:,} images in the worst case at eps = {pruned.config.eps:.6g}{against}."
        )
    return said


def _setting(report: Report) -> tuple[object, ...]:
    config = report.config
    images = config.n_images, config.images_sha256
    return *images, config.eps, config.norm, config.pixel_range, config.seed, config.attacks, list(report.attacks)
