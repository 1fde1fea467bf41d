"""Which models onnxruntime-genai can run: decoders of text alone, with keys and values of every layer in their cache."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from moeify.errors import ConversionError
from moeify.export.onnx.calm import calm
from moeify.export.onnx.decoder_interface import decoder_interface
from moeify.ir.model_graph import Batch

#: What classes of transformers are called that read text and write its next token.
_NAMES = ("ForCausalLM", "LMHeadModel")


def check_class(model_class: str) -> None:
    """By its name alone (`package.module.Class`), before a weight is read. Raises ConversionError for another kind of model."""
    if not (model_class.startswith("transformers.") and model_class.endswith(_NAMES)):
        raise ConversionError(
            f"{model_class.rpartition('.')[2]}: onnxruntime-genai is given decoders of text of transformers alone "
            "(LlamaForCausalLM ...); export it with --to onnx"
        )


def decoder_example(model: nn.Module, example: Batch) -> dict[str, Tensor]:
    """The token ids of the example, by their name. Raises ConversionError where the example has none, or the model's cache is
    no such one: checked by a forward pass of one sequence."""
    name, tensors = type(model).__name__, example.values() if isinstance(example, dict) else example
    ids = example.get("input_ids") if isinstance(example, dict) else next(iter(tensors), None)
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        raise ConversionError(f"{name}: the example inputs hold no token ids; pass input_ids [sequences, tokens]")
    found: dict[str, Tensor] = {"input_ids": ids}
    with calm(model):
        interface = decoder_interface(model, found)
    if interface is None:
        raise ConversionError(
            f"{name}: keeps no cache of keys and values of every layer, which onnxruntime-genai needs; export it with --to onnx"
        )
    shapes = {(tensor.shape[1], tensor.shape[3]) for tensor in interface.example[-2 * interface.cache_layers :]}
    if len(shapes) > 1:
        raise ConversionError(
            f"{name}: its layers differ in heads or head sizes ({_named(shapes)}), and onnxruntime-genai takes one for all; "
            "export it with --to onnx"
        )
    return found


def _named(shapes: Any) -> str:
    return ", ".join(f"{heads} of {width}" for heads, width in sorted(shapes))
