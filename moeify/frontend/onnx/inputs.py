"""What an ONNX graph takes and gives, and one batch of inputs made up from that."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moeify.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

#: Free sizes of a made-up batch: of the first axis, and of others.
_BATCH, _LENGTH = 2, 7
#: Token ids are below so many where the graph does not tell the size of its table.
_FEW = 2

#: Names of a decoder's cache as exporters give them: past_key_values.0.key, past.0.value, past_key_0.
_CACHE = re.compile(r"past_key_values.*|past\.\d+\..*|past_(key|value)_\d+")

_TYPES = {
    "FLOAT": torch.float32, "DOUBLE": torch.float64, "FLOAT16": torch.float16, "INT64": torch.int64, "INT32": torch.int32,
    "INT8": torch.int8, "UINT8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class EmptyCache:
    """What a decoder's cache holds before the first token; fixed: another input that has one value only."""

    def __init__(self, sizes: tuple[int | None, ...], dtype: torch.dtype) -> None:
        self._sizes, self._dtype = sizes, dtype
        self.__name__ = "empty_cache"

    def __call__(self, fed: Tensor) -> Tensor:
        """Rows as `fed` has, [rows, ...]; other free sizes are 0."""
        rest = [size or 0 for size in self._sizes[1:]]
        return torch.zeros([self._sizes[0] or fed.shape[0], *rest] if self._sizes else [], dtype=self._dtype)


@dataclass(frozen=True, eq=False)
class Ports:
    """fed: the names of the inputs that a batch holds. implied: those of the others, and what makes them. outputs: names, those
    of floats first, as they are what is measured. vocabulary: token ids are below it; None: not told."""

    fed: tuple[str, ...]
    implied: Mapping[str, EmptyCache] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    vocabulary: int | None = None

    @classmethod
    def of(cls, model: ir.Model, where: str, named: Collection[str] = ()) -> Ports:
        """named: what a batch is known to hold, whatever it is called.

        Raises InputError for a graph without inputs or outputs, or with inputs that are no tensors of known types.
        """
        inputs = {value.name or "": value for value in model.graph.inputs}
        caches = (name for name in inputs if _is_implied(name) and name not in named)
        implied = {name: EmptyCache(_sizes(inputs[name]), _dtype(inputs[name], where)) for name in caches}
        fed = tuple(name for name in inputs if name not in implied)
        floats = [v for v in model.graph.outputs if v.dtype is None or v.dtype.is_floating_point()]
        outputs = dict.fromkeys(str(v.name) for v in (*floats, *model.graph.outputs))
        if not fed or not outputs:
            raise InputError(f"{where}: has no {'output' if fed else 'input'}; export it again")
        if stored := [name for name in outputs if name in model.graph.initializers]:
            raise InputError(f"{where}: gives the weight {stored[0]} as an output, as it is stored: leave that output out")
        return cls(fed, implied, tuple(outputs), _vocabulary(model))

    def complete(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch with the implied inputs."""
        first = batch[self.fed[0]]
        return dict(batch) | {name: made(first) for name, made in self.implied.items()}


def made_up(model: ir.Model, ports: Ports, where: str, seed: int = 0) -> dict[str, Tensor]:
    """A batch for the inputs that a batch holds: free sizes are 2 rows of 7, ids random, masks full, floats normal.

    Raises InputError for an input whose shape the file does not say.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = {str(value.name): value for value in model.graph.inputs}
    return {name: _made(name, inputs[name], ports, generator, where) for name in ports.fed}


def _made(name: str, value: ir.Value, ports: Ports, generator: torch.Generator, where: str) -> Tensor:
    if value.shape is None:
        raise InputError(f"{where}: does not say the shape of its input {name!r}: give one batch with --example FILE")
    free = [_BATCH, *([_LENGTH] * len(value.shape))]
    shape = [given if given is not None else free[axis] for axis, given in enumerate(_sizes(value))]
    dtype = _dtype(value, where)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if dtype == torch.bool or "mask" in name:
        return torch.ones(shape, dtype=dtype)
    if "type" in name:
        return torch.zeros(shape, dtype=dtype)
    if "position" in name and shape:
        return torch.arange(shape[-1], dtype=dtype).expand(shape).contiguous()
    return torch.randint(ports.vocabulary or _FEW, shape, generator=generator).to(dtype)


def _is_implied(name: str) -> bool:
    return _CACHE.fullmatch(name) is not None or name == "use_cache_branch"


def _sizes(value: ir.Value) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in value.shape or ())


def _dtype(value: ir.Value, where: str) -> torch.dtype:
    kind = "unknown" if value.dtype is None else value.dtype.name
    if kind not in _TYPES:
        raise InputError(f"{where}: its input {value.name!r} is of type {kind.lower()}, which cannot be fed")
    return _TYPES[kind]


def _vocabulary(model: ir.Model) -> int | None:
    """The rows of the table in which an input is looked up."""
    for node in model.graph:
        if node.op_type == "Gather" and len(node.inputs) > 1 and node.attributes.get_int("axis", 0) == 0:
            table, ids = node.inputs[:2]
            tensor = None if table is None else table.const_value
            if tensor is not None and len(tensor.shape) == 2 and _comes_in(ids):
                return int(tensor.shape.numpy()[0])
    return None


def _comes_in(value: Any) -> bool:
    """The token ids among the graph's inputs, as they are or cast."""
    while value is not None and not value.is_graph_input():
        node = value.producer()
        if node is None or node.op_type not in ("Cast", "Identity", "Reshape"):
            return False
        value = node.inputs[0]
    return value is not None and not any(word in value.name for word in ("type", "position", "mask"))
