"""The way out to ONNX: one `moeify::MoE` node a layer, with a body that stock ONNX Runtime runs."""

from moeify.export.onnx.exporting import export_onnx
from moeify.export.onnx.report import Check, OnnxReport, Port

__all__ = ["Check", "OnnxReport", "Port", "export_onnx"]
