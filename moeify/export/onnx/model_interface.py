"""Which of the interfaces a model has."""

from __future__ import annotations

from torch import nn

from moeify.export.onnx.decoder_interface import decoder_interface
from moeify.export.onnx.encoder_decoder_interface import encoder_decoder_interface
from moeify.export.onnx.interface import Interface, flat_interface
from moeify.ir.model_graph import Batch


def model_interface(model: nn.Module, example: Batch) -> Interface:
    """A decoder's with its cache, an encoder-decoder's, else that of the example's tensors one by one.

    Raises UsageError and ConversionError as `flat_interface`.
    """
    return decoder_interface(model, example) or encoder_decoder_interface(model, example) or flat_interface(model, example)
