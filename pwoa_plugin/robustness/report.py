"""What an evaluation found, and how it was found: as an object, JSON, Markdown and text."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import (
    AliasChoices,
    AliasPath,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PlainValidator,
    model_validator,
)
from torch import Tensor

from .._checked import Record, checked
from .._files import read_json, write_text
from .._notebook import fragment
from .._text import visible
from .._versions import installed_versions
from ..errors import InputError
from ..pages.table import Table
from ..pages.text import interval_text
from .alarm import Alarm
from .statistics import Paired, paired, wilson_interval

_WIDE = 0.05  # 95 % intervals wider than this are remarked on


class Written(Record):
    """A record in a file of its own. Two are equal only if they are one object: they hold tensors.

    Attributes:
        formats: of the JSON that can be read, if it states its format; the last is written. A new one is for what a
            reader of the old one would misread.
    """

    formats: ClassVar[tuple[int, ...]] = ()
    model_config = ConfigDict(extra="ignore", arbitrary_types_allowed=True, ser_json_inf_nan="constants")

    def __str__(self) -> str:
        return repr(self)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What `to_dict` made ``content`` of. What can be derived is derived anew.

        Raises:
            InputError: ``content`` is something else, or of a later format; one line names the field.
        """
        name = cls.__name__.lower()
        if cls.formats and isinstance(content, Mapping) and (number := content.get("format")) not in cls.formats:
            read = f"this version reads {cls.formats[0]} to {cls.formats[-1]}"
            raise InputError(f"{name} has format={number!r}, {read}; give what to_json wrote, or update pwoa_plugin")
        return checked(cls, content, name)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict`. A file of that name is replaced whole or not at all; missing folders are made."""
        write_text(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `to_json` wrote.

        Raises:
            InputError: the file is missing, or holds something else.
        """
        content = read_json(path)
        try:
            return cls.from_dict(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{os.fspath(path)}: {error}") from error


def _read_bits(bits: Any) -> Tensor:
    if isinstance(bits, Tensor):
        return bits
    if not isinstance(bits, str) or not bits or set(bits) - {"0", "1"}:
        raise ValueError(f"{str(bits)[:20]!r} is not a string of 0 and 1")
    return torch.tensor([bit == "1" for bit in bits])


def _write_bits(flags: Tensor) -> str:
    return "".join("1" if flag else "0" for flag in flags.tolist())


def _read_labels(labels: Any) -> Tensor:
    if isinstance(labels, Tensor):
        return labels
    if not isinstance(labels, list) or not all(type(label) is int and label >= 0 for label in labels):
        raise ValueError("is not a list of classes, each an integer of 0 or more")
    return torch.tensor(labels, dtype=torch.int64)


Verdicts = Annotated[Tensor, PlainValidator(_read_bits), PlainSerializer(_write_bits)]
"""Bool ``(N,)``, image by image; in JSON a string of 1 (right) and 0."""
Labels = Annotated[Tensor, PlainValidator(_read_labels), PlainSerializer(Tensor.tolist)]
"""Classes, int64 ``(N,)``; in JSON a list."""


class AttackReport(Written):
    """One column: the verdicts under one attack, or under all of them.

    Attributes:
        robust: bool ``(N,)``, image by image: correct when clean and correct when attacked.
        seconds: wall-clock time of the attack.
        forwards: its cost, in images through the model.
        felled: of an ensemble whose parts each get the images left over, how many each part fooled, by its name.
    """

    derived: ClassVar[tuple[str, ...]] = ("accuracy", "low", "high")

    robust: Verdicts
    seconds: NonNegativeFloat
    forwards: NonNegativeInt = 0
    felled: dict[str, NonNegativeInt] = Field(default_factory=dict)

    @property
    def n_robust(self) -> int:
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
        return self.interval[0]

    @property
    def high(self) -> float:
        return self.interval[1]

    def __repr__(self) -> str:
        figures = f"accuracy={self.accuracy:.4f}, low={self.low:.4f}, high={self.high:.4f}, seconds={self.seconds:.1f}"
        return f"AttackReport({figures})"


class Config(Record):
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
        output: which part of what the model returns had the logits, where that was given; else None.
        images_sha256: of images and labels, in order; two reports can be paired only if it is the same.
    """

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
    output: int | str | None = None
    images_sha256: str = ""

    def __str__(self) -> str:
        protocol = "" if self.protocol == "custom" else f", protocol {self.protocol} {self.protocol_version}"
        return f"{self.n_images:,} images, {self.norm} eps = {self.eps_text}{protocol}, seed {self.seed}, {self.device}"

    @property
    def eps_text(self) -> str:
        """eps, as a number of 8-bit grey levels in (0, 1) where it is a whole one and no short decimal, as 0.2."""
        levels = round(255 * self.eps, 6)
        if self.pixel_range == (0.0, 1.0) and levels == int(levels) and 0 < levels < 255 and levels % 51:
            return f"{int(levels)}/255"
        return f"{self.eps:.6g}" + ("" if self.pixel_range == (0.0, 1.0) else f" in {list(self.pixel_range)}")


class Report(Written):
    """Clean and robust accuracy of a model.

    Attributes:
        config: what was asked.
        clean_correct: bool ``(N,)``, image by image: correct when clean.
        attacks: a column for each attack, by name, in the order they were asked for.
        alarms: why the numbers may not deserve belief; empty for an honest model. None where nobody looked.
        labels: ``(N,)`` int64, the true classes; None in reports of format 1.
        notes: what a reader should know about the run.
        adversarial: ``(N, C, H, W)``, what fooled the model on each image, or the clean image; None if read from a
            file, which does not hold it.
        answers: ``(N,)`` int64, the model's answers to these; None where ``adversarial`` is.
        versions: of Python and the packages that bear on a verdict.
    """

    formats: ClassVar[tuple[int, ...]] = (1, 2, 3)

    config: Config
    clean_correct: Verdicts = Field(validation_alias=AliasChoices(AliasPath("clean", "correct"), "clean_correct"))
    attacks: dict[str, AttackReport]
    alarms: tuple[Alarm, ...] | None = None
    labels: Labels | None = None
    notes: tuple[str, ...] = ()
    adversarial: Tensor | None = Field(default=None, repr=False, exclude=True)
    answers: Tensor | None = Field(default=None, repr=False, exclude=True)
    versions: dict[str, str] = Field(default_factory=installed_versions)

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        lengths = {self.config.n_images, len(self.clean_correct)}
        lengths |= {len(column.robust) for column in self.attacks.values()}
        lengths |= set() if self.labels is None else {len(self.labels)}
        if len(lengths) > 1:
            raise ValueError(f"has verdicts on {sorted(lengths)} images")
        return self

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

    def caveats(self) -> list[str]:
        """What the figures leave open, a sentence each: their intervals are wide, or AutoAttack was not run."""
        said = []
        if (width := self.worst_case.high - self.worst_case.low) > _WIDE:
            said.append(
                f"Only {self.config.n_images:,} images were judged: the 95 % interval of the worst case is "
                f"{100 * width:.1f} points wide. Judge more to narrow it."
            )
        if self.autoattack is None:
            said.append("AutoAttack is not among the attacks: the worst case may be lower than shown.")
        return said

    @property
    def autoattack(self) -> AttackReport | None:
        """Column of the standard AutoAttack, whatever its name; None where it was not run whole."""
        for name, column in self.attacks.items():
            asked = self.config.attacks.get(name, {})
            if asked.get("version") == "standard" and not {"queries", "class"} & asked.keys():
                return column
        return None

    def paired_with(self, other: Report, column: str = "worst case") -> Paired:
        """This model against another on the same images; this one comes first.

        Args:
            other: of the same images, judged with the same attack.
            column: an attack's name, ``worst case`` or ``clean``.

        Raises:
            InputError: the images or the attacks differ, or a report has no such column.
        """
        if not self.config.images_sha256 or self.config.images_sha256 != other.config.images_sha256:
            raise InputError("the reports are not known to be of the same images, so they cannot be paired; judge anew")
        mine, theirs = self.verdicts(column), other.verdicts(column)
        if column != "clean":
            for name in ("eps", "norm", "pixel_range"):
                own, others = getattr(self.config, name), getattr(other.config, name)
                if own != others:
                    raise InputError(f"{name}: the reports are of {own} and of {others}; judge both alike")
            asked = [report.config.attacks for report in (self, other)]
            if asked[0] != asked[1] if column == "worst case" else asked[0].get(column) != asked[1].get(column):
                raise InputError(f"column={column!r}: the reports' attacks differ, or their settings; judge both alike")
        return paired(mine, theirs)

    def verdicts(self, column: str) -> Tensor:
        """Bool ``(N,)`` of an attack's name, ``worst case`` or ``clean``."""
        if column == "clean":
            return self.clean_correct
        if column not in self.columns:
            raise InputError(f"column={column!r}: the report has {', '.join(self.attacks)}, clean and worst case")
        return self.columns[column].robust

    @property
    def columns(self) -> dict[str, AttackReport]:
        return {**self.attacks, "worst case": self.worst_case}

    @property
    def figures(self) -> dict[str, tuple[float, tuple[float, float]]]:
        """``clean`` and every column by name: accuracy and its 95 % interval."""
        columns = {name: (column.accuracy, column.interval) for name, column in self.columns.items()}
        return {"clean": (self.clean, self.clean_interval), **columns}

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values. Image by image, verdicts are a string of 1 (right) and 0."""
        content = self.model_dump(mode="json")
        (low, high), correct = self.clean_interval, content.pop("clean_correct")
        clean = {"accuracy": self.clean, "low": low, "high": high, "correct": correct}
        return {"format": self.formats[-1], "clean": clean, **content, "worst_case": self.worst_case.to_dict()}

    def table(self) -> Table:
        """Clean, each attack and the worst case; a line for each."""
        rows = [("clean", f"{self.clean:.2%}", interval_text(*self.clean_interval), "", "")]
        for name, column in self.columns.items():
            forwards = f"{column.forwards:,}" if column.forwards else ""
            interval = interval_text(*column.interval)
            rows.append((name, f"{column.accuracy:.2%}", interval, forwards, f"{column.seconds:.1f}"))
        return Table("Robustness by attack", ("attack", "accuracy", "95 % interval", "forwards", "seconds"), rows)

    def to_markdown(self) -> str:
        """The accuracies as a Markdown table, with the setting above it, alarms and notes below."""
        lines = [str(self.config), "", *self.table().to_markdown()]
        said = [*(f"ALARM: {alarm}" for alarm in self.alarms or ()), *self.notes]
        return visible("\n".join([*lines, *([""] if said else []), *(f"- {line}" for line in said)])) + "\n"

    def _repr_html_(self) -> str:
        alarms = [f"ALARM: {alarm}" for alarm in self.alarms or ()]
        return fragment(f"{self.config}.", self.table(), [*alarms, *self.notes])

    def __repr__(self) -> str:
        worst, n_alarms = self.worst_case, len(self.alarms or ())
        alarms = "" if self.alarms is None else f", {n_alarms} alarm{'s' * (n_alarms != 1)}"
        found = f"clean {self.clean:.2%}, worst case {worst.accuracy:.2%} ({interval_text(*worst.interval)}){alarms}"
        return visible(f"Report({self.config}; {', '.join(self.attacks)}; {found})")

    def __str__(self) -> str:
        alarms = [f"ALARM: {alarm}" for alarm in self.alarms or ()]
        notes = [f"note: {note}" for note in self.notes]
        return visible("\n".join([str(self.config), self.table().to_text(), *alarms, *notes]))
