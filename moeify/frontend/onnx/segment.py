"""A part of an ONNX graph, between values, as a function of tensors that ONNX Runtime computes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from moeify.errors import InputError
from moeify.runtime.session import session

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime


class Segment:
    """Takes the values `inputs` in their order and gives those of `outputs`.

    types: element types of values by name. The session is made at the first call; it holds the weights of its part alone.
    """

    def __init__(
        self, model: ir.Model, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], types: dict[str, torch.dtype]
    ) -> None:
        self._model, self._inputs, self._outputs, self._types = model, tuple(inputs), tuple(outputs), types
        self._names = [str(value.name) for value in inputs]
        self._session: onnxruntime.InferenceSession | None = None
        self.__name__ = "segment"  # as fx names what it calls

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Raises InputError where ONNX Runtime refuses the values: other sizes than the file was made for, say."""
        self._session = self._session or self._built()
        feeds = {name: _array(tensor) for name, tensor in zip(self._names, tensors, strict=True)}
        try:
            found = quiet_run(self._session, feeds)
        except Exception as error:  # onnxruntime's exceptions have no common class of their own
            sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise InputError(f"ONNX Runtime cannot run the model on {sizes}: {first_line(error)}") from error
        return tuple(_tensor(value) for value in found)

    def _built(self) -> onnxruntime.InferenceSession:
        import onnx_ir as ir

        graph = ir.convenience.extract(self._model.graph, self._inputs, self._outputs)
        if others := [value.name for value in graph.inputs if value.name not in self._types]:
            raise InputError(f"the value {others[0]} of the graph is no tensor, and stands where it is cut")
        for value in graph.inputs:
            value.shape = None  # what a file says of values inside may be of another run
            value.type = ir.TensorType(_element(self._types[value.name or ""]))
        return built(part_of(self._model, graph))


def built(model: ir.Model) -> onnxruntime.InferenceSession:
    """A session for a graph in memory; its weights go by a temporary file, for a message may have 2 GB at most."""
    import onnx_ir as ir

    with tempfile.TemporaryDirectory(prefix="moeify-segment-") as folder:
        path = Path(folder) / "part.onnx"
        ir.save(model, path, external_data="part.data")
        return session(path)


def quiet_run(built: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
    """All outputs; what fails is raised, and not printed too."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    found: list[Any] = built.run(None, feeds, options)
    return found


def part_of(model: ir.Model, graph: ir.Graph) -> ir.Model:
    """The graph with the functions of the model that it was taken from."""
    import onnx_ir as ir

    graph.opset_imports.update(model.opset_imports)
    return ir.Model(graph, ir_version=model.ir_version, functions=tuple(model.functions.values()))


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = tensor.detach().cpu().contiguous().numpy()
    return array


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(np.asarray(value))


def _element(dtype: torch.dtype) -> Any:
    """The ONNX type."""
    import onnx_ir as ir

    return ir.DataType.from_numpy(np.dtype(torch.empty(0, dtype=dtype).numpy().dtype))
