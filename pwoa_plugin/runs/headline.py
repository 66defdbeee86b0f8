"""What a run came to, in sentences."""

from __future__ import annotations

from ..pages.text import interval_text, percent, size_text
from .report import RunReport


def headline(report: RunReport) -> list[str]:
    """How much smaller, and how robust: a sentence each."""
    said = []
    size = report.size
    if report.cost is not None:
        before, after = report.cost.dense, report.cost.pruned
        said.append(
            f"{before.parameters / max(1, after.parameters):.1f}x smaller: {after.parameters:,} of "
            f"{before.parameters:,} parameters are left, {before.macs / max(1, after.macs):.1f}x fewer "
            f"MACs. The dense network's file has {size_text(before.file_bytes)}, "
            f"this one's {size_text(after.file_bytes if report.file_bytes is None else report.file_bytes)}."
        )
    elif size is not None and size.compression is not None:
        said.append(
            f"{size.compression:.1f}x fewer weights: {size.nonzero:,} of {size.weights:,} convolution and linear "
            f"weights are left. {bytes_text(report)}"
        )
    pruned, dense = report.judged.get("pruned"), report.dense_alike
    if pruned is not None:
        worst = pruned.worst_case
        against = f"; the dense network {percent(dense.worst_case.accuracy)}" if dense else ""
        said.append(
            f"Robust on {percent(worst.accuracy)} ({interval_text(worst.low, worst.high)}) of "
            f"{pruned.config.n_images:,} images in the worst case at {pruned.config.norm} eps = "
            f"{pruned.config.eps_text}{against}."
        )
    made = report.adversarial_examples
    said.append(
        "Training made no adversarial example." if made == "none" else f"Training made adversarial examples: {made}."
    )
    return said


def bytes_text(report: RunReport) -> str:
    """The bytes of the file with the zeros, and those of the sparse file, or what one would have."""
    assert report.size is not None
    stored = f"Stored with its zeros the network has {size_text(report.size.dense_bytes)}"
    if report.file_bytes is not None:
        stored = f"Its file holds the zeros and has {report.file_bytes:,} bytes"
    if report.sparse_file_bytes is not None:
        return f"{stored}; its sparse file has {report.sparse_file_bytes:,} bytes."
    return f"{stored}; a sparse file would have about {size_text(report.size.sparse_bytes)} (pwoa export writes one)."
