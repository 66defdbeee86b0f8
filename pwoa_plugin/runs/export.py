"""`pwoa export`: a run's network, or a checkpoint, as a file that ships, with a card beside it."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from .._files import named_path, replaced_whole, write_text
from .._random import seeded
from .._text import did_you_mean
from .._weights import REMOVALS
from ..config import ConfigError, DataConfig, PwoAConfig
from ..data import data_set, load_test, load_training
from ..errors import FileError, InputError
from ..export import Agreement, Choices, Format, compared, format_of, make_format
from ..export.judging import How, Shipped, judge_exported_task
from ..models import Wanted, names_code
from ..models.normalisation import normalisation_of
from ..robustness import JudgeSettings
from ..robustness.settings import JudgeOptions
from .card import Card
from .evaluate import bind_test_images, pruned_network
from .files import read_report
from .folder import RunFolder
from .network import architecture_of, load_network
from .report import RunReport
from .size import SizeReport, size_report
from .sources import check_there, images_for, is_run

_logger = logging.getLogger(__name__)

_COMPARED = 1000  # test images, at most
_EXAMPLES = 4  # images that a file is compared on before it is put in place
_CARD, _JUDGEMENT = ".md", ".robustness.json"  # behind the file's name


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export` wrote.

    Attributes:
        path, card: the file, and the card beside it.
        judgement: ``OUT.robustness.json``; None where the file was not judged.
        bytes: of the file.
        size: of the network.
        agreement: of a quantized file with the network, on test images; else None.
        shipped: how the file was judged; None where it was not.
    """

    path: Path
    card: Path
    judgement: Path | None
    bytes: int
    size: SizeReport
    agreement: Agreement | None
    shipped: Shipped | None


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """The network to be exported, and what is known of it."""

    model: nn.Module
    arch: str
    checkpoint: str
    data: DataConfig
    shape: tuple[int, ...]
    new: str
    report: RunReport | None
    judged_by: dict[str, Any]  # defaults of JudgeSettings


def export(
    source: str,
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    quantize: str | None = None,
    values: str | None = None,
    calibration: int = 512,
    judge: bool = False,
    queries: int = 5000,
    arch: str | None = None,
    key: str | None = None,
    data: str | None = None,
    data_root: str | None = None,
    download: bool = True,
    image_size: int | None = None,
    channels: int | None = None,
    progress: bool = True,
    **options: Unpack[JudgeOptions],
) -> Exported:
    """Write a network as a file that ships, and a model card ``OUT.md`` beside it.

    The file is put in place when all is done that may fail; what was said of an earlier one is removed then.

    Args:
        source: a finished run's folder, a checkpoint (with ``arch`` and ``data``), or a name: ``robustbench:NAME``,
            ``timm:NAME``, ``hf:owner/name``.
        out: the file; one that is there is replaced whole or not at all.
        format: a key of `pwoa_plugin.export.FORMATS`. Default: what the suffix of ``out`` stands for.
        quantize: ``int8``, for ONNX.
        values: dtype of a sparse file's values.
        calibration: how many training images set the ranges of ``quantize``.
        judge: attack the network or the file, as `pwoa_plugin.export.judging.Shipped` says, and write
            ``OUT.robustness.json``. After a kill, the same call resumes.
        queries: of Square on a quantized file, for each image.
        arch, key, data, data_root, download, image_size, channels: see `pwoa_plugin.runs.compare.judge_networks`.
        progress: whether bars are shown.
        options: how to judge; see `JudgeSettings`.

    Raises:
        InputError: something cannot be used; one line says what. A file that is there stays then.
        ModuleNotFoundError: the format needs a package that is missing.
    """
    path = named_path("out", out)
    kind = format_of(path, format)
    made = make_format(kind)
    _check_choices(made, kind, quantize, values, calibration)
    check_there(source)
    _check_out(path, source, made)
    config = _config_of(source, data)
    given = {"root": data_root, "image_size": image_size, "channels": channels}
    own = None if config is None else config.data
    subject = _subject(source, arch, key, config, images_for([(source, arch)], data, own, download=download, **given))
    sample, output = options.pop("sample", None), options.get("output", subject.judged_by.get("output"))
    task = None
    if judge:
        settings = JudgeSettings.of(options, **subject.judged_by)
        task = bind_test_images(settings, subject.data, sample, at_most=_COMPARED)
    calibrated = _calibration(subject.data, calibration) if quantize else None
    images = load_test(subject.data, at_most=_COMPARED)[0] if quantize else None
    choices = Choices(quantize=quantize, calibration=calibrated, values=values)
    agreement = shipped = None
    with replaced_whole(path) as scratch:
        made.write(subject.model, scratch, _examples(subject.shape), choices)
        file = made.read(scratch, subject.model)
        if images is not None:
            agreement = compared(subject.model, file, images, output=output)
            _logger.info("beside the float network: %s", agreement)
        if task is not None:
            how, state = _how(choices), _beside(path, ".judging")
            shipped = judge_exported_task(
                subject.model, file, task, how=how, queries=queries, state=state, progress=progress
            )
    for suffix in (_CARD, _JUDGEMENT):
        _beside(path, suffix).unlink(missing_ok=True)
    if shipped is not None:
        write_text(_beside(path, _JUDGEMENT), json.dumps({"format": 1, **shipped.to_dict()}, indent=1) + "\n")
        shutil.rmtree(_beside(path, ".judging"), ignore_errors=True)
    return _with_card(path, made, kind, subject, choices, output, agreement, shipped)


def _how(choices: Choices) -> How:
    """How a file is judged, by what it allows."""
    if choices.quantize:
        return "transfer and Square"
    return "same answers" if choices.values in (None, "float32") else "white box"


def _with_card(
    path: Path,
    made: Format,
    kind: str,
    subject: _Subject,
    choices: Choices,
    output: int | str | None,
    agreement: Agreement | None,
    shipped: Shipped | None,
) -> Exported:
    """Write the card of a file that is there."""
    card = Card(
        file=path,
        format=made,
        kind=kind,
        arch=subject.arch,
        checkpoint=subject.checkpoint,
        data=subject.data.name,
        shape=subject.shape,
        size=size_report(subject.model),
        new=subject.new,
        removed=bool(getattr(subject.model, REMOVALS, None)),
        output=output,
        report=subject.report,
        quantize=choices.quantize,
        values=choices.values,
        agreement=agreement,
        shipped=shipped,
    )
    write_text(_beside(path, _CARD), card.to_markdown())
    return Exported(
        path=path,
        card=_beside(path, _CARD),
        judgement=None if shipped is None else _beside(path, _JUDGEMENT),
        bytes=path.stat().st_size,
        size=card.size,
        agreement=agreement,
        shipped=shipped,
    )


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _check_out(path: Path, source: str, made: Format) -> None:
    """Refuse folders in the place of what is written, and a file that the network is read from."""
    if os.path.isdir(path):
        raise FileError(f"{path}: is a folder; name a file in it, such as {path / ('model' + made.suffix)}")
    for beside in (_beside(path, _CARD), _beside(path, _JUDGEMENT)):
        if os.path.isdir(beside):
            raise FileError(f"{beside}: is a folder, and would be written beside {path}; give another name")
    read = [Path(source)]
    if is_run(source):
        folder = RunFolder(source)
        read = [folder.config, folder.facts, folder.masks, folder.pruned]
    if path.exists() and any(file.exists() and path.samefile(file) for file in read):
        raise InputError(f"{path}: is what the network is read from; give another name")


def _check_choices(made: Format, kind: str, quantize: str | None, values: str | None, calibration: int) -> None:
    for name, given, known in (("quantize", quantize, made.quantizations), ("values", values, made.values)):
        if given is not None and given not in known:
            has = f"format {kind} has {', '.join(known) or 'none'}"
            raise InputError(f"{name}={given!r}: {has}{did_you_mean(given, known)}")
    if calibration < 1:
        raise InputError(f"calibration={calibration}: give the number of images, 1 or more")
    made.require(f"format {kind}")


def _config_of(source: str, data: str | None) -> PwoAConfig | None:
    """The config of a run; None of other sources. Without ``data``, its own images have to be there."""
    if not is_run(source):
        return None
    folder = RunFolder(source)
    facts = folder.read_facts()
    if data is None and not facts.images:
        cure = "export it there, with export_onnx(model, path, images)"
        raise ConfigError(f"{folder}: its network or images were given in Python; {cure}")
    return PwoAConfig.from_yaml(folder.config, changes={"device": None})


def _subject(source: str, arch: str | None, key: str | None, config: PwoAConfig | None, data: DataConfig) -> _Subject:
    classes, shape = data_set(data).describe(data)
    if config is not None:
        if key is not None:
            raise InputError(f"key={key!r}: goes with a checkpoint, and {source} is a run")
        model = pruned_network(source, arch=arch)
        report, classes = read_report(source), RunFolder(source).read_facts().images["classes"]
        classes = (config.model and config.model.num_classes) or classes
        judged_by = {name: getattr(config, name) for name in ("eps", "pixel_range", "output")}
        facts = report.model.arch, report.model.checkpoint
    else:
        model = load_network(source, arch, key, Wanted(classes, shape[0], data.name), shape)
        report, judged_by, facts = None, {}, (str(architecture_of(source, arch)), source)
    arch_name, checkpoint = facts
    return _Subject(
        model=model.eval(),
        arch=arch_name,
        checkpoint=checkpoint,
        data=data,
        shape=tuple(shape),
        new=_new(arch_name, classes, shape[0], data.name, model),
        report=report,
        judged_by=judged_by,
    )


def _new(arch: str, classes: int, channels: int, data: str, model: nn.Module) -> str:
    """Python that makes a new network like this one."""
    own = None if names_code(arch) else normalisation_of(model)
    normalised = f", mean={own.mean}, std={own.std}" if own else ""
    return f"make_network({arch!r}, classes={classes}, channels={channels}, data={data!r}{normalised})"


def _examples(shape: tuple[int, ...]) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.rand(_EXAMPLES, *shape, generator=random)


def _calibration(data: DataConfig, count: int) -> Tensor:
    """Natural training images as they are, drawn at random."""
    plain = data.model_copy(update={"augment": False, "images": None, "validation": 0.0})
    with seeded(0):
        batch: Tensor = next(iter(load_training(plain, batch_size=count).train))[0]
    return batch
