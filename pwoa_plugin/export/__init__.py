"""Networks as files that others run: one format a file here, and one line in ``FORMATS``.

What is judged after export is in `judging`; it brings ART, and is imported from there.
"""

from .agreement import Agreement, compared
from .base import Choices, Format
from .formats import FORMATS, format_of, make_format
from .int8 import quantize_onnx
from .onnx import export_onnx
from .pt2 import export_pt2
from .semi_structured import to_semi_structured
from .session import ONNXNetwork
from .sparse import load_sparse, save_sparse

__all__ = [
    "FORMATS",
    "Agreement",
    "Choices",
    "Format",
    "ONNXNetwork",
    "compared",
    "export_onnx",
    "export_pt2",
    "format_of",
    "load_sparse",
    "make_format",
    "quantize_onnx",
    "save_sparse",
    "to_semi_structured",
]
