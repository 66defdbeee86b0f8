"""What an evaluation found, and how it was found: as an object, JSON, Markdown and text."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from .._checked import checked
from .._files import read_bytes, write_text
from .._versions import installed_versions
from ..errors import FileError, InputError
from .alarms import Alarm
from .statistics import Paired, paired, wilson_interval

__all__ = ["AttackReport", "Config", "Report", "eps_text"]

_FORMAT = 2  # of the JSON; to be raised when a reader of the old one would misread the new one
_MOST_BYTES = 500_000_000
_READ = (1, 2)  # what 2 added may be missing


@dataclass(frozen=True, eq=False, kw_only=True)
class AttackReport:
    """One column: how the model fared under one attack, or under all of them.

    Attributes:
        robust: bool ``(N,)``, image by image: correct when clean and correct when attacked.
        seconds: wall-clock time of the attack.
        forwards: what it cost, in images through the model.
        felled: of an ensemble that goes on with what is left, how many images each part felled, by its name.
    """

    robust: Tensor
    seconds: float
    forwards: int = 0
    felled: Mapping[str, int] = field(default_factory=dict)

    @property
    def n_robust(self) -> int:
        """Number of robust images."""
        return int(self.robust.sum())

    @property
    def accuracy(self) -> float:
        """Robust accuracy, in [0, 1]: the share of all images that are robust."""
        return self.n_robust / len(self.robust)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of `accuracy`, ``(low, high)``."""
        return wilson_interval(self.n_robust, len(self.robust))

    @property
    def low(self) -> float:
        """Lower end of `interval`."""
        return self.interval[0]

    @property
    def high(self) -> float:
        """Upper end of `interval`."""
        return self.interval[1]

    def __repr__(self) -> str:
        return (
            f"AttackReport(accuracy={self.accuracy:.4f}, low={self.low:.4f}, high={self.high:.4f}, "
            f"seconds={self.seconds:.1f})"
        )


@dataclass(frozen=True, kw_only=True)
class Config:
    """What was asked: enough to run the same evaluation again.

    Attributes:
        eps: radius of the ball, in pixel units (those of ``pixel_range``).
        norm: norm of the ball.
        pixel_range: ``(low, high)`` of a valid image.
        attacks: parameters of each attack, by the name of its column.
        seed: seed of all random draws.
        n_images: number of images judged.
        n_classes: number of logits of the model.
        batch_size: images per batch.
        device: where the model ran.
        protocol: its name; ``custom`` where attacks were given one by one.
        protocol_version: of that protocol.
        mean, std: by channel, where normalisation was given apart from the model; else None.
        images_sha256: of images and labels, in order; what two reports must share to be paired.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    eps: float
    norm: str = "Linf"
    pixel_range: tuple[float, float]
    attacks: dict[str, dict[str, Any]]
    seed: int
    n_images: int
    n_classes: int
    batch_size: int
    device: str
    protocol: str = "custom"
    protocol_version: int = 1
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    images_sha256: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """Clean and robust accuracy of a model.

    Attributes:
        config: what was asked.
        clean_correct: bool ``(N,)``, image by image: correct when clean.
        attacks: a column for each attack, by name, in the order they were asked for.
        alarms: why the numbers may not deserve belief; empty for an honest model. None where nothing was looked for.
        labels: ``(N,)`` int64, the true classes; None in reports of format 1.
        notes: what a reader should know about the run.
        adversarial: ``(N, C, H, W)``, what felled each image, or the clean image; None in a report that was read from
            a file, which does not hold it.
        answers: ``(N,)`` int64, the model's answers to these; None like them.
        versions: of Python and the packages that bear on a verdict.
    """

    config: Config
    clean_correct: Tensor
    attacks: Mapping[str, AttackReport]
    alarms: tuple[Alarm, ...] | None = None
    labels: Tensor | None = None
    notes: tuple[str, ...] = ()
    adversarial: Tensor | None = field(default=None, repr=False)
    answers: Tensor | None = field(default=None, repr=False)
    versions: Mapping[str, str] = field(default_factory=installed_versions)

    @property
    def clean(self) -> float:
        """Clean accuracy, in [0, 1]."""
        return float(self.clean_correct.double().mean())

    @cached_property
    def clean_interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of `clean`, ``(low, high)``."""
        return wilson_interval(int(self.clean_correct.sum()), len(self.clean_correct))

    @cached_property
    def worst_case(self) -> AttackReport:
        """Against the best attack on each image: robust is what withstood all attacks; costs add up."""
        columns = self.attacks.values()
        return AttackReport(
            robust=torch.stack([self.clean_correct, *(column.robust for column in columns)]).all(0),
            seconds=sum(column.seconds for column in columns),
            forwards=sum(column.forwards for column in columns),
        )

    @property
    def autoattack(self) -> AttackReport | None:
        """Column of the standard AutoAttack, whatever its name; None where it was not run whole."""
        for name, column in self.attacks.items():
            asked = self.config.attacks.get(name, {})
            if asked.get("version") == "standard" and "queries" not in asked:
                return column
        return None

    def paired_with(self, other: Report, column: str = "worst case") -> Paired:
        """This model against another on the same images; this one comes first.

        Args:
            other: of the same images, judged with the same attack.
            column: an attack's name, ``worst case`` or ``clean``.

        Raises:
            ValueError: the images or the attacks differ, or a report has no such column.
        """
        if not self.config.images_sha256 or self.config.images_sha256 != other.config.images_sha256:
            raise InputError("the reports are not known to be of the same images, so they cannot be paired; judge anew")
        mine, theirs = self.verdicts(column), other.verdicts(column)
        if column != "clean":
            for name in ("eps", "norm", "pixel_range"):
                own, others = getattr(self.config, name), getattr(other.config, name)
                if own != others:
                    raise InputError(f"{name}: the reports are of {own} and of {others}; judge both alike")
            asked = [report._attacks_of(column) for report in (self, other)]
            if asked[0] != asked[1]:
                raise InputError(f"column={column!r}: the reports' attacks differ, or their settings; judge both alike")
        return paired(mine, theirs)

    def _attacks_of(self, column: str) -> dict[str, Any]:
        attacks = self.config.attacks
        return attacks if column == "worst case" else {column: attacks.get(column)}

    def verdicts(self, column: str) -> Tensor:
        """Bool ``(N,)`` of an attack's name, ``worst case`` or ``clean``.

        Raises:
            ValueError: there is no such column.
        """
        if column == "clean":
            return self.clean_correct
        if column == "worst case":
            return self.worst_case.robust
        if column not in self.attacks:
            raise InputError(f"column={column!r}: the report has {', '.join(self.attacks)}, clean and worst case")
        return self.attacks[column].robust

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values. Image by image, verdicts are a string of 1 (robust) and 0."""
        return {
            "format": _FORMAT,
            "config": {
                key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.config).items()
            },
            "clean": {
                "accuracy": self.clean,
                "low": self.clean_interval[0],
                "high": self.clean_interval[1],
                "correct": _to_bits(self.clean_correct),
            },
            "attacks": {name: _column_to_dict(column) for name, column in self.attacks.items()},
            "worst_case": _column_to_dict(self.worst_case),
            "alarms": None if self.alarms is None else [asdict(alarm) for alarm in self.alarms],
            "labels": None if self.labels is None else self.labels.tolist(),
            "notes": list(self.notes),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Report:
        """The report that `to_dict` made ``content`` of. Accuracies are derived from the verdicts anew.

        Raises:
            ValueError: ``content`` is no such dict, or one of a later format.
        """
        if not isinstance(content, Mapping) or "format" not in content:
            raise InputError("report has no field 'format'; give what Report.to_dict or to_json wrote")
        if content["format"] not in _READ or isinstance(content["format"], bool):
            raise InputError(
                f"report has format={content['format']!r}, this version reads up to {_FORMAT}; update pwoa_plugin"
            )
        try:
            given = checked(_Content, dict(content), "report")
            report = cls(
                config=given.config,
                clean_correct=_from_bits(given.clean.correct),
                attacks={
                    name: AttackReport(
                        robust=_from_bits(column.robust),
                        seconds=column.seconds,
                        forwards=column.forwards,
                        felled=column.felled,
                    )
                    for name, column in given.attacks.items()
                },
                alarms=given.alarms,
                labels=None if given.labels is None else torch.tensor(given.labels, dtype=torch.int64),
                notes=given.notes,
                versions=given.versions,
            )
        except ValueError as error:
            raise InputError(f"report is incomplete or malformed ({error}); evaluate again") from error
        lengths = {report.config.n_images, len(report.clean_correct)}
        lengths |= {len(column.robust) for column in report.attacks.values()}
        lengths |= set() if report.labels is None else {len(report.labels)}
        if len(lengths) > 1:
            raise InputError(f"report has verdicts on {sorted(lengths)} images; evaluate again")
        return report

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report. A file of that name is replaced whole or not at all.

        Args:
            path: file to write; missing folders are made.
        """
        write_text(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Report:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the file is no such report.
            FileNotFoundError: there is no file.
        """
        try:
            return cls.from_dict(json.loads(read_bytes(path, most=_MOST_BYTES)))
        except FileError:
            raise
        except ValueError as error:
            raise InputError(f"{os.fspath(path)}: {error}") from error

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [
            ("clean", f"{self.clean:.2%}", _percent_range(*self.clean_interval), "", ""),
        ]
        for name, column in [*self.attacks.items(), ("worst case", self.worst_case)]:
            interval = _percent_range(column.low, column.high)
            forwards = f"{column.forwards:,}" if column.forwards else ""
            rows.append((name, f"{column.accuracy:.2%}", interval, forwards, f"{column.seconds:.1f}"))
        return rows

    def _headline(self) -> str:
        config = self.config
        protocol = "" if config.protocol == "custom" else f", protocol {config.protocol} {config.protocol_version}"
        return (
            f"{config.n_images} images, {config.norm} eps = {eps_text(config.eps, config.pixel_range)}{protocol}, "
            f"seed {config.seed}, {config.device}"
        )

    def _said(self) -> list[str]:
        return [*(f"ALARM: {alarm}" for alarm in self.alarms or ()), *self.notes]

    def to_markdown(self) -> str:
        """The accuracies as a Markdown table, with the setting above it, alarms and notes below."""
        lines = [self._headline(), "", _pipe(_HEADER), "| --- | ---: | ---: | ---: | ---: |"]
        lines += [_pipe(row) for row in self._rows()]
        if self._said():
            lines += ["", *(f"- {line}" for line in self._said())]
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        rows = [_HEADER, *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
        lines = [self._headline()]
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, len(row)))]
            lines.append("  ".join(cells).rstrip())
        lines += [f"ALARM: {alarm}" for alarm in self.alarms or ()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


_HEADER = ("attack", "accuracy", "95 % interval", "forwards", "seconds")


@dataclass
class _Verdicts:
    correct: str


@dataclass
class _Column:
    robust: str
    seconds: NonNegativeFloat
    forwards: NonNegativeInt = 0
    felled: dict[str, NonNegativeInt] = field(default_factory=dict)


@dataclass
class _Content:
    """What `Report.from_dict` reads; the accuracies beside it are derived anew."""

    config: Config
    clean: _Verdicts
    attacks: dict[str, _Column]
    notes: tuple[str, ...]
    versions: dict[str, str]
    alarms: tuple[Alarm, ...] | None = None
    labels: tuple[NonNegativeInt, ...] | None = None


def _to_bits(flags: Tensor) -> str:
    return "".join("1" if flag else "0" for flag in flags.tolist())


def _from_bits(bits: str) -> Tensor:
    if not bits or set(bits) - {"0", "1"}:
        raise InputError(f"{bits[:20]!r} is no string of 0 and 1")
    return torch.tensor([bit == "1" for bit in bits])


def _column_to_dict(column: AttackReport) -> dict[str, Any]:
    return {
        "accuracy": column.accuracy,
        "low": column.low,
        "high": column.high,
        "seconds": column.seconds,
        "forwards": column.forwards,
        "felled": dict(column.felled),
        "robust": _to_bits(column.robust),
    }


def _pipe(cells: Sequence[str]) -> str:
    # A bar in a name would end its cell.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _percent_range(low: float, high: float) -> str:
    return f"{low:.2%} to {high:.2%}"


def eps_text(eps: float, pixel_range: tuple[float, float]) -> str:
    """eps, and as a number of 8-bit grey levels where it is a whole number of them in (0, 1)."""
    levels = round(255 * eps, 6)
    if pixel_range == (0.0, 1.0) and levels == int(levels) and 0 < levels < 255:
        return f"{int(levels)}/255"
    return f"{eps:.6g}" + ("" if pixel_range == (0.0, 1.0) else f" in {list(pixel_range)}")
