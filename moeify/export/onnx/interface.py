"""How a model looks from outside: which tensors go in and come out of the file, under which names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeify.errors import ConversionError, UsageError
from moeify.ir.model_graph import Batch

#: Traced modules hold the model under this name; it is cut from the names of initializers.
HELD = "traced"


@dataclass(frozen=True, eq=False)
class Interface:
    """module: takes the example's tensors in order and gives a tuple of tensors. cache_layers: 0 where there is no cache.

    implied: further inputs of the file, for those of the module: the empty caches of a graph that came with some. may_refuse:
    does the module say by InputError which sizes it does not take, whatever its inputs are said to be?
    """

    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cache_layers: int = 0
    implied: Callable[[Mapping[str, Tensor]], dict[str, NDArray[Any]]] = lambda inputs: {}
    may_refuse: bool = False


class FlatModel(nn.Module):
    """A model whose tensors go in one by one and come out as a tuple; what is not a tensor in the example stays as it is.

    outputs: how many of the outputs are kept; None: all.
    """

    def __init__(self, model: nn.Module, example: Batch, outputs: int | None = None) -> None:
        super().__init__()
        self.traced = model
        self._outputs = outputs
        self._args = () if isinstance(example, dict) else tuple(example)
        self._kwargs = dict(example) if isinstance(example, dict) else {}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        args = [next(given) if isinstance(value, Tensor) else value for value in self._args]
        kwargs = {name: next(given) if isinstance(value, Tensor) else value for name, value in self._kwargs.items()}
        return tuple(named_tensors(self.traced(*args, **kwargs)).values())[: self._outputs]


def flat_interface(model: nn.Module, example: Batch, outputs: int | None = None) -> Interface:
    """For any module. Inputs by the names of forward's parameters, outputs (the first few of them, None: all) by their field
    names or output_0, output_1, ...

    Raises UsageError for an example without tensors, ConversionError for outputs that hold none.
    """
    named = example if isinstance(example, dict) else _named(model, example)
    tensors = {name: _enlarged(value, named) for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UsageError("the example inputs hold no tensor: pass a tuple or a dict with at least one")
    module = FlatModel(model, example, outputs)
    found = named_tensors(model(**example) if isinstance(example, dict) else model(*example))
    if not found:
        raise ConversionError(f"the output of {type(model).__name__} holds no tensor; nothing can be exported")
    return Interface(module, tuple(tensors.values()), tuple(tensors), tuple(found)[:outputs])


def named_tensors(output: Any) -> dict[str, Tensor]:
    """The tensors of a model's output by name: fields of a mapping, places of a tuple. Anything else is left out."""
    if isinstance(output, Tensor):
        return {"output_0": output}
    fields: dict[str, Any] = {}
    if isinstance(output, Mapping):
        fields = dict(output)
    elif isinstance(output, (tuple, list)):
        fields = {f"output_{i}": value for i, value in enumerate(output)}
    found: dict[str, Tensor] = {}
    for name, value in fields.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, (tuple, list)):
            found |= {f"{name}.{i}": tensor for i, tensor in enumerate(value) if isinstance(tensor, Tensor)}
    return found


def _named(model: nn.Module, example: tuple[Any, ...]) -> dict[str, Any]:
    """A tuple's members by the names of forward's parameters; a starred parameter gives name.0, name.1, ..."""
    try:
        bound = inspect.signature(model.forward).bind(*example)
    except TypeError as error:
        raise UsageError(f"the example inputs do not fit {type(model).__name__}.forward: {error}") from error
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        starred = bound.signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        named |= {f"{name}.{i}": v for i, v in enumerate(value)} if starred else {name: value}
    return named


def _enlarged(tensor: Tensor, named: Mapping[str, Any]) -> Tensor:
    """A batch of one is traced as a batch of two: torch.export takes a size of 1 for a constant, and one tensor object in
    two places for one input."""
    sizes = {value.shape[0] for value in named.values() if isinstance(value, Tensor) and value.ndim}
    return torch.cat([tensor, tensor]) if sizes == {1} and tensor.ndim else tensor.clone()
