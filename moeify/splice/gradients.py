"""Backward passes through the traced dense model: what comes back at the outputs of its feed-forward networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from moeify.data.data_set import batch_rows, on_device
from moeify.errors import ConversionError, UsageError
from moeify.frontend.match import Call, Found
from moeify.frontend.traced import Traced
from moeify.ir.model_graph import Batch, Loss, OutputGradient
from moeify.layers.channels import features_last
from moeify.measure.outputs import evaluating, is_causal_language_model, main_output
from moeify.measure.self_loss import energy_loss, next_token_loss
from moeify.splice.token_masks import TokenMasks, decoder_nodes
from moeify.splice.walk import last_uses

#: One call of a site, its input, and the zeros added to its output that the gradient is taken by.
_Probe = tuple[str, Call, Tensor, Tensor]


def output_gradients(
    model: nn.Module, traced: Traced, found: Found, batches: Iterable[Batch], loss: Loss
) -> Iterator[dict[str, OutputGradient]]:
    """`Host.gradients` of an eager model. Holds what one backward pass over one row of a batch takes, logits included.

    Raises UsageError where "next-token" is asked of another model than a causal language model, ConversionError for a gradient
    that is not finite.
    """
    device = next(model.parameters()).device
    decoding = decoder_nodes(traced)
    chosen: str | None = None
    for batch in (row for whole in batches for row in single_rows(on_device(whole, device), traced.dynamic)):
        chosen = chosen or _choose(model, batch, loss)
        with torch.inference_mode(False), torch.enable_grad():
            output, probes = _forward(model, traced, found, batch)
            value = (next_token_loss if chosen == "next-token" else energy_loss)(main_output(output)[1], batch)
            gradients = torch.autograd.grad(value, [zeros for *_, zeros in probes], allow_unused=True)
        yield _by_site(probes, gradients, TokenMasks.of(batch), decoding)


def single_rows(batch: Batch, dynamic: bool) -> Iterator[Batch]:
    """The rows of the batch one by one, where the graph takes other sizes than the example's: each is a backward pass."""
    count = batch_rows(batch)
    if not dynamic or count < 2:
        yield batch
        return
    for row in range(count):
        of_row = partial(_part, count=count, row=row)
        yield pytree.tree_map(of_row, batch)


def _part(value: Any, count: int, row: int) -> Any:
    return value[row : row + 1] if isinstance(value, Tensor) and value.ndim and value.shape[0] == count else value


def _choose(model: nn.Module, batch: Batch, loss: Loss) -> str:
    if loss == "energy":
        return loss
    with evaluating(model):
        causal = is_causal_language_model(model, batch)
    if loss == "next-token" and not causal:
        raise UsageError(f"{type(model).__name__} is no causal language model: choose the loss energy, or auto")
    return "next-token" if causal else "energy"


def _forward(model: nn.Module, traced: Traced, found: Found, batch: Batch) -> tuple[Any, list[_Probe]]:
    """The model's output, and a probe at each call of a site, in order."""
    nodes = list(traced.graph.graph.nodes)
    leaving = last_uses(nodes, {node: i for i, node in enumerate(nodes)}, found)
    ends = {call.y: (path, call) for path, calls in found.calls.items() for call in calls}
    bound, probes = traced.bind(model, batch), list[_Probe]()
    values: dict[fx.Node, Any] = {}

    def value(node: fx.Node) -> Any:
        return getattr(traced.graph, str(node.target)) if node.op == "get_attr" else values[node]

    for i, node in enumerate(nodes):
        if node.op == "placeholder":
            given = bound[node.name]
            values[node] = given.detach() if isinstance(given, Tensor) else given
        elif node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
            values[node] = node.target(*args, **kwargs)
            if node in ends:
                path, call = ends[node]
                zeros = torch.zeros_like(values[node], requires_grad=True)
                probes.append((path, call, value(call.x).detach(), zeros))
                values[node] = values[node] + zeros
        elif node.op == "output":
            leaves = fx.node.map_arg(node.args[0], value)
            return pytree.tree_unflatten(list(leaves), traced.output_spec), probes
        for done in leaving.get(i, ()):
            values.pop(done, None)
    raise AssertionError("a graph ends with its output")


def _by_site(
    probes: list[_Probe], gradients: tuple[Tensor | None, ...], masks: TokenMasks, decoding: frozenset[fx.Node]
) -> dict[str, OutputGradient]:
    """Calls of one site follow one another; an output that the loss does not hang on has gradient 0."""
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (path, call, x, zeros), gradient in zip(probes, gradients):
        both = (x, torch.zeros_like(zeros) if gradient is None else gradient)
        if not bool(torch.isfinite(both[1]).all()):
            raise ConversionError(f"{path}: the gradient on the calibration data is not finite; check the model's weights")
        last = [features_last(tensor) if call.channels else tensor for tensor in both]
        flat = [masks.real(tensor.reshape(-1, tensor.shape[-1]).cpu(), call.x in decoding) for tensor in last]
        parts.setdefault(path, []).append((flat[0], flat[1]))
    joined = {path: [torch.cat(parts) for parts in zip(*calls)] for path, calls in parts.items()}
    return {path: OutputGradient(x, gradient) for path, (x, gradient) in joined.items()}
