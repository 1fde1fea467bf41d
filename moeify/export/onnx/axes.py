"""torch's symbols for free axes (s77) => batch, sequence, decoder_sequence, past_sequence, total_sequence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moeify.export.onnx.interface import Interface

if TYPE_CHECKING:
    import onnx_ir as ir


def name_axes(model: ir.Model, interface: Interface, fixed: Mapping[str, int]) -> None:
    """Renames the free axes of inputs, outputs and every value between. Changes the model.

    fixed: symbols that take one size only. Axes of one traced size count as one: the first axis of all inputs is the batch,
    the next free size the sequence.
    """
    import onnx_ir as ir

    names = {symbol: str(size) for symbol, size in fixed.items()}
    sizes: dict[tuple[bool, int], str] = {}
    for value, tensor in zip(model.graph.inputs, interface.example):
        for axis, dim in enumerate(value.shape or ()):
            if (symbol := _symbol(dim)) and symbol not in fixed:
                key = (axis == 0, tensor.shape[axis])
                names[symbol] = sizes.setdefault(key, _label(value.name or "", axis, set(sizes.values())))

    def renamed(dim: Any) -> Any:
        text = dim.value if isinstance(dim, ir.SymbolicDim) else None
        if text is None or text in fixed:
            return dim if text is None else fixed[text]
        text = re.sub(r"[A-Za-z_]\w*", lambda word: names.get(word[0], word[0]), text)
        return " + ".join(sorted(text.split(" + "))) if re.fullmatch(r"\w+( \+ \w+)*", text) else text

    nodes = (output for node in model.graph for output in node.outputs)
    for value in (*model.graph.inputs, *nodes):
        if value.shape is not None:
            value.shape = ir.Shape([renamed(dim) for dim in value.shape])


def _symbol(dim: Any) -> str | None:
    text = getattr(dim, "value", None)
    return text if isinstance(text, str) and re.fullmatch(r"[A-Za-z_]\w*", text) else None


def _label(name: str, axis: int, taken: set[str]) -> str:
    streams = {"past_key_values": "past_sequence", "decoder_input_ids": "decoder_sequence"}
    wanted = "batch" if axis == 0 else streams.get(name.partition(".")[0], "sequence")
    if wanted in taken:
        wanted = "total_sequence" if name == "attention_mask" else f"{name}_{axis}"
    return wanted
