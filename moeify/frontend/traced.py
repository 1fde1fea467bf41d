"""The traced model: an fx graph without weights, and how live weights and a batch are put into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from moeify.data.mapped_pages import let_go
from moeify.errors import InputError
from moeify.ir.model_graph import Batch


@dataclass(frozen=True, eq=False)
class Traced:
    """A functional fx graph of a model in eval mode.

    graph: its placeholders stand for lifted parameters, buffers and constants, then for the user's inputs; it returns a
        tuple, the flattened outputs.
    lifted: placeholder -> path of a parameter, buffer or tensor attribute of the live model.
    constants: placeholder -> a value that the model does not hold (a tensor made inside `forward`).
    user_inputs: placeholders in the flattened order of the batch. keys: the batch's keys in that order (None: a tuple).
    plain_modules: paths of modules that took one positional tensor and gave one tensor at every call on the example.
    dynamic: batch and sequence sizes may change, tried at a second shape; else `notes` says why.

    No weight is held: what has been spliced out of the model can be freed.
    """

    graph: fx.GraphModule
    lifted: Mapping[str, str]
    constants: Mapping[str, Tensor]
    user_inputs: tuple[str, ...]
    keys: tuple[str, ...] | None
    batch_spec: pytree.TreeSpec = field(repr=False)
    output_spec: pytree.TreeSpec = field(repr=False)
    plain_modules: frozenset[str] = frozenset()
    dynamic: bool = True
    notes: tuple[str, ...] = ()

    def bind(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """The value of every placeholder, in graph order: weights from the live model, inputs from the batch.

        A weight that the model no longer has (its site was rewritten) is left out: nothing may read it then.
        Raises InputError for a batch of another form than the example's.
        """
        leaves = self._leaves(batch)
        values: dict[str, Any] = {}
        for name in (*self.lifted, *self.constants):
            if name in self.constants or live_tensor(model, self.lifted[name]) is not None:
                values[name] = self.lifted_value(model, name)
        return values | dict(zip(self.user_inputs, leaves, strict=True))

    def lifted_value(self, model: nn.Module, name: str) -> Tensor:
        """The value of one placeholder that is not a user's input. Raises InputError where the model lost it."""
        if name in self.constants:
            return self.constants[name]
        value = live_tensor(model, self.lifted[name])
        if value is None:
            raise InputError(f"the model has no {self.lifted[name]} any more: trace it again after a change from outside")
        return value

    def run(self, model: nn.Module, batch: Batch) -> list[Any]:
        """The flattened outputs of the graph with the model's weights. Raises InputError as `bind` does."""
        values = self.bind(model, batch)
        with torch.no_grad():
            names = (node.name for node in self.graph.graph.nodes if node.op == "placeholder")
            outputs = _NodeByNode(self.graph).run(*(values[name] for name in names), enable_io_processing=False)
        return list(outputs)

    def _leaves(self, batch: Batch) -> list[Any]:
        if isinstance(batch, dict) != (self.keys is not None):
            found, wanted = ("keyword", "positional") if isinstance(batch, dict) else ("positional", "keyword")
            raise InputError(f"a batch holds {found} arguments, the model was traced with {wanted} ones")
        if self.keys is not None:
            assert isinstance(batch, dict)
            if set(batch) != set(self.keys):
                raise InputError(f"a batch holds {_names(batch)}, the model was traced with {_names(self.keys)}")
            batch = {key: batch[key] for key in self.keys}
        leaves, spec = pytree.tree_flatten(batch)
        if spec != self.batch_spec:
            raise InputError(f"a batch holds {len(leaves)} values in another structure than the {len(self.user_inputs)} traced")
        return leaves


class _NodeByNode(fx.Interpreter):
    """Lets go of weights that lie in files as soon as a node has read them."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function":
            let_go(self.env[node] for node in n.all_input_nodes)
        return result


def live_tensor(model: nn.Module, path: str) -> Tensor | None:
    """The parameter, buffer or tensor attribute at that path of the model; None where there is none (any more)."""
    try:
        value = attrgetter(path)(model)
    except AttributeError:
        return None
    return value if isinstance(value, Tensor) else None


def _names(keys: Any) -> str:
    return ", ".join(keys) or "nothing"
