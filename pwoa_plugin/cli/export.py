"""``pwoa export``: what it takes, and what it does."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..errors import InputError
from .commands import (
    Channels,
    Command,
    DataName,
    DataRoot,
    Eps,
    ImageSize,
    JSONLines,
    NoDownload,
    Norm,
    Part,
    Quiet,
)
from .output import say, set_up_logging, write_json

#: Options that `pwoa_plugin.runs.export.export` knows by the same names.
_GIVEN = (
    *("format", "quantize", "values", "calibration", "queries", "arch", "key"),
    *("data", "data_root", "image_size", "channels", "output"),
)
_HOW = ("protocol", "attacks", "norm", "eps", "sample", "seed", "batch_size", "device")


@dataclass(kw_only=True)
class Export(Command):
    """Write a network as a file that ships, with a model card beside it.

    The network is a finished run's, a checkpoint or a named one. The file is read again, compared with it and judged
    before it is put in place.
    """

    needs = "runs.export"

    network: Annotated[
        str, Argument(help="the --out of `pwoa prune`, a checkpoint, robustbench:NAME, timm:NAME or hf:owner/name")
    ]
    out: Annotated[Path, Argument(help="file: NAME.onnx, .pt2, .pte or .sparse.safetensors; OUT.md beside it")]
    format: Annotated[
        str | None, Option(help="sparse, onnx, pt2, pte, semi-structured", show_default="by the suffix")
    ] = None
    quantize: Annotated[str | None, Option(help="int8: for onnx, calibrated on training images")] = None
    values: Annotated[
        str | None, Option(help="float32, float16 or bfloat16: of a sparse file", show_default="the network's own")
    ] = None
    calibration: Annotated[int, Option(help="training images that set the ranges of --quantize")] = 512
    arch: Annotated[str | None, Option(help="of a checkpoint; may be package.module:function")] = None
    key: Annotated[str | None, Option(help="of the state dict in a checkpoint with several")] = None
    data: DataName = None
    data_root: DataRoot = None
    no_download: NoDownload = False
    image_size: ImageSize = None
    channels: Channels = None
    judge: Annotated[bool, Option("--judge", help="attack it, into OUT.robustness.json and the card")] = False
    protocol: Annotated[str | None, Option(help="quick, paper, standard or a YAML file", show_default="paper")] = None
    attacks: Annotated[list[str] | None, Option(metavar="NAME...", help="replace a protocol")] = None
    norm: Norm = None
    eps: Eps = None
    sample: Annotated[
        int | None,
        Option("--sample", "--images", help="test images, 0: all", show_default="the protocol's, else at most 1000"),
    ] = None
    queries: Annotated[int, Option(help="of Square on a quantized file, for each image")] = 5000
    seed: Annotated[int | None, Option(help="of the draw and of the attacks", show_default="0")] = None
    batch_size: Annotated[int | None, Option(help="images in a batch", show_default="256")] = None
    output: Part = None
    device: Annotated[str | None, Option(help="where the network is attacked", show_default="cpu")] = None
    quiet: Quiet = False
    json: JSONLines = False

    def run(self, line: list[str]) -> int:
        judging = self._given(*_HOW)
        if judging and not self.judge:
            raise InputError(f"--{next(iter(judging)).replace('_', '-')} goes with --judge")
        set_up_logging(self.quiet, self.json)
        from ..runs.export import export

        done = export(
            self.network,
            self.out,
            judge=self.judge,
            download=not self.no_download,
            progress=not self.quiet and not self.json,
            **self._given(*_GIVEN),
            **judging,
        )
        if self.json:
            agreement = done.agreement and done.agreement.to_dict()
            judgement = done.judgement and str(done.judgement)
            said = {"file": str(done.path), "bytes": done.bytes, "card": str(done.card)}
            write_json("exported", **said, agreement=agreement, judgement=judgement)
            return 0
        say(f"{done.path}: {done.bytes:,} bytes; the network's tensors have {done.size.dense_bytes:,}")
        for sentence in done.shipped.sentences if done.shipped else ():
            say(sentence)
        if done.agreement and not done.shipped:
            say(f"Beside the float network, on test images: {done.agreement}.")
        if not self.quiet:
            say(f"Its card is {done.card}", sys.stderr)
        return 0
