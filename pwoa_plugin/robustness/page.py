"""The HTML page of a comparison."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._yaml import dump_yaml
from ..pages import render, svg_plots
from .plots import drawings

if TYPE_CHECKING:
    from .comparison import Comparison

__all__ = ["comparison_page", "image_uri"]

_SHOWN = 96  # pixels of an image on the page, at least


def comparison_page(comparison: Comparison) -> str:
    """See `Comparison.to_html`."""
    first = comparison.reports[comparison.first]
    low, high = first.config.pixel_range
    names = list(comparison.reports)
    return render(
        __package__,
        "comparison.html.j2",
        comparison=comparison,
        title=" and ".join(names) if len(names) < 3 else f"{len(names)} models",
        first=first,
        verdicts=[comparison.verdict(name) for name in names[1:]],
        pairs={name: comparison.pair(name) for name in names[1:]},
        remarks=comparison.remarks(),
        n_alarms=sum(len(report.alarms or ()) for report in comparison.reports.values()),
        looked_for_alarms=all(report.alarms is not None for report in comparison.reports.values()),
        plots=svg_plots(drawings(comparison)),
        broken=[
            {
                "it": it,
                "image": image_uri(it.image, low, high),
                "adversarial": image_uri(it.adversarial, low, high),
            }
            for it in comparison.broken
        ],
        parameters=dump_yaml(first.config.attacks),
        versions=first.versions,
    )


def image_uri(image: Tensor, low: float, high: float) -> str:
    """A PNG of an image as a ``data:`` address, small ones enlarged by whole pixels.

    Args:
        image: ``(C, H, W)``; of one channel, or of three or more, of which three are shown.
        low, high: of the pixels.
    """
    from PIL import Image

    pixels = ((image - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)
    pixels = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    made = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    factor = max(1, -(-_SHOWN // max(made.size)))
    made = made.resize((made.width * factor, made.height * factor), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    made.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
