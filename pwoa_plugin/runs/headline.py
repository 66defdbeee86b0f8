"""What a run came to, in sentences."""

from __future__ import annotations

from ..pages.text import interval_text, percent, size_text
from .report import RunReport


def headline(report: RunReport) -> list[str]:
    """How much smaller, how many bytes, and how robust: a sentence each."""
    smaller = " ".join(filter(None, (smaller_text(report), _bytes_text(report))))
    return [*filter(None, (smaller, robust_text(report))), examples_text(report)]


def smaller_text(report: RunReport) -> str:
    """How much smaller the network is; empty where that is not known."""
    size = report.size
    if report.cost is not None:
        before, after = report.cost.dense, report.cost.pruned
        return (
            f"{before.parameters / max(1, after.parameters):.1f}x smaller: {after.parameters:,} of "
            f"{before.parameters:,} parameters are left, {before.macs / max(1, after.macs):.1f}x fewer MACs."
        )
    if size is None or size.compression is None:
        return ""
    return (
        f"{size.compression:.1f}x fewer weights: {size.nonzero:,} of {size.weights:,} convolution and linear "
        f"weights are left."
    )


def robust_text(report: RunReport) -> str:
    """How robust the network is; empty where it was not judged."""
    pruned, dense = report.judged.get("pruned"), report.dense_alike
    if pruned is None:
        return ""
    worst = pruned.worst_case
    against = f"; the dense network {percent(dense.worst_case.accuracy)}" if dense else ""
    return (
        f"Robust on {percent(worst.accuracy)} ({interval_text(worst.low, worst.high)}) of "
        f"{pruned.config.n_images:,} images in the worst case at {pruned.config.norm} eps = "
        f"{pruned.config.eps_text}{against}."
    )


def examples_text(report: RunReport) -> str:
    """Whether training made adversarial examples."""
    made = report.adversarial_examples
    return "Training made no adversarial example." if made == "none" else f"Training made adversarial examples: {made}."


def _bytes_text(report: RunReport) -> str:
    """The bytes of the run's own file, beside the dense network's or the sparse file's; empty if nothing is left."""
    if report.cost is not None:
        before, after = report.cost.dense, report.cost.pruned
        own = after.file_bytes if report.file_bytes is None else report.file_bytes
        return f"The dense network's file has {size_text(before.file_bytes)}, this one's {size_text(own)}."
    return bytes_text(report) if report.size is not None and report.size.compression is not None else ""


def bytes_text(report: RunReport) -> str:
    """The bytes of the file with the zeros, and those of the sparse file, or what one would have."""
    assert report.size is not None
    stored = f"Stored with its zeros the network has {size_text(report.size.dense_bytes)}"
    if report.file_bytes is not None:
        stored = f"Its file holds the zeros and has {report.file_bytes:,} bytes"
    if report.sparse_file_bytes is not None:
        return f"{stored}; its sparse file has {report.sparse_file_bytes:,} bytes."
    return f"{stored}; a sparse file would have about {size_text(report.size.sparse_bytes)} (pwoa export writes one)."
