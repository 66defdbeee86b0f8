"""Where `export_onnx` was before."""

from ..export.onnx import export_onnx as export_onnx
