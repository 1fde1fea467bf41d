"""What the products of a graph get to see: its float form run in ONNX Runtime on calibration data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moeify.errors import InputError
from moeify.export.onnx.attach import given_inputs, moe_nodes
from moeify.export.onnx.interface import Interface
from moeify.export.onnx.lowering.lower import lower
from moeify.export.onnx.precision.dense_products import weights_of
from moeify.ir.model_graph import Batch
from moeify.runtime.decoder import Decoder
from moeify.runtime.session import session

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime
    from numpy.typing import NDArray

#: This part of the tokens is held out, and never more than so many in all.
_HELD_PART, _MOST_HELD = 0.125, 512
#: None of so many tokens is held out.
_FEWEST = 4
#: The names of outputs that show what products read.
_SHOWN = "moeify/seen."


@dataclass
class ProductInput:
    """x [tokens, width] of one or more products, over all tokens but those held out. held: those, [tokens, width].

    largest: max |x|, squares: the sum of x^2, each [width]. tokens: how many these are of.
    """

    largest: NDArray[np.float32]
    squares: NDArray[np.float64]
    tokens: int = 0
    rows: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def held(self) -> NDArray[np.float32]:
        return np.concatenate(self.rows)

    @property
    def mean_square(self) -> NDArray[np.float32]:
        return np.asarray(self.squares / max(self.tokens, 1), dtype=np.float32)

    def see(self, x: NDArray[np.float32]) -> None:
        """x: [..., width] of one batch. Its last tokens are held out, as far as they are due: neighbours are alike."""
        x = x.reshape(-1, x.shape[-1])
        kept = sum(map(len, self.rows))
        due = min(round(_HELD_PART * (self.tokens + kept + len(x))), _MOST_HELD) - kept
        fitted = len(x) - max(due, 0)
        seen, held = x[:fitted], x[fitted:]
        self.largest = np.maximum(self.largest, np.abs(seen).max(axis=0, initial=0.0))
        self.squares += np.square(seen, dtype=np.float64).sum(axis=0)
        self.tokens += fitted
        self.rows.append(held)


def product_inputs(model: ir.Model, interface: Interface, batches: Iterable[Batch]) -> dict[str, ProductInput]:
    """By the name of the value, for products of the main graph with a constant matrix and for MoE layers; without those that
    read too few tokens to hold one out, as a head may that reads one of each row. The model is left as it was. Raises
    InputError for batches that the graph does not take, and where nothing is known of any product."""
    copy = model.clone()
    names = _observed(copy)
    lower(copy, "portable")
    found: dict[str, ProductInput] = {}
    with tempfile.TemporaryDirectory() as folder:
        built = _session(copy, Path(folder) / "floats.onnx")
        shown = [f"{_SHOWN}{number}" for number in range(len(names))]
        for batch in batches:
            for name, x in zip(names, _run(built, shown, interface, batch)):
                if name not in found:
                    found[name] = ProductInput(np.zeros(x.shape[-1], np.float32), np.zeros(x.shape[-1]))
                found[name].see(x)
    if not found:
        raise InputError("calibrate: there is no batch in it, or no product with a constant matrix in the model")
    known = {name: seen for name, seen in found.items() if len(seen.held)}
    if not known:
        most = max(seen.tokens for seen in found.values())
        raise InputError(f"calibrate: no product reads more than {most} tokens of the data: give more than {_FEWEST}")
    return known


def _observed(model: ir.Model) -> list[str]:
    """The names of what products read, which become outputs of the graph (an Identity of what comes in)."""
    import onnx_ir as ir

    layers = set(moe_nodes(model))
    values = [given_inputs(node)["x"] if node in layers else node.inputs[0] for node in _products(model, layers)]
    wanted = list(dict.fromkeys(value for value in values if value is not None))
    for number, value in enumerate(wanted):
        shown = ir.node("Identity", [value])
        shown.outputs[0].name = f"{_SHOWN}{number}"
        model.graph.append(shown)
        model.graph.outputs.append(shown.outputs[0])
    return [str(value.name) for value in wanted]


def _products(model: ir.Model, layers: set[ir.Node]) -> list[ir.Node]:
    return [node for node in model.graph if node in layers or weights_of(node) is not None]


def _session(model: ir.Model, path: Path) -> onnxruntime.InferenceSession:
    import onnx_ir as ir

    ir.save(model, path, external_data=f"{path.name}.data")
    return session(path)


def _run(
    built: onnxruntime.InferenceSession, outputs: list[str], interface: Interface, batch: Batch
) -> list[NDArray[np.float32]]:
    """What these outputs give; tokens that a mask leaves out are not in them."""
    given = batch if isinstance(batch, dict) else dict(zip(interface.inputs, batch))
    tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    try:
        found = _found(built, outputs, interface, tensors)
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise InputError(f"calibrate: ONNX Runtime does not take the data: {str(error).strip().splitlines()[0]}") from error
    mask = tensors.get("attention_mask")
    if mask is None or bool(mask.all()):
        return found
    real = mask.bool().numpy()
    return [x[real] if x.shape[: real.ndim] == real.shape else x for x in found]


def _found(
    built: onnxruntime.InferenceSession, outputs: list[str], interface: Interface, tensors: Mapping[str, torch.Tensor]
) -> list[Any]:
    if interface.cache_layers:
        ids = tensors["input_ids"]
        mask = tensors.get("attention_mask", torch.ones_like(ids))
        feeds = Decoder(built).first(ids.numpy(), mask.numpy())
        return [value.numpy() for value in built.run_with_ort_values(outputs, feeds)]
    inputs = {value.name for value in built.get_inputs()}
    feeds = {name: tensor.numpy() for name, tensor in tensors.items() if name in inputs}
    return list(built.run(outputs, feeds | interface.implied(tensors)))
