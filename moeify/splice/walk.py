"""One journey through a traced model, cut at its feed-forward networks: each segment runs once a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from moeify.data.data_set import on_device
from moeify.data.mapped_pages import let_go
from moeify.frontend.match import Call, Found
from moeify.frontend.trace import Traced
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import Batch
from moeify.layers.channels import OverChannels, features_last
from moeify.splice.output_sum import OutputSum, output_sum
from moeify.splice.spill import SpilledList, Values
from moeify.splice.token_masks import TokenMasks, decoder_nodes
from moeify.splice.walk_state import WalkState


class GraphWalk:
    """Runs the traced graph node by node on every batch and stops at the sites.

    Between two sites only the values that later nodes use are kept, as a SpilledList. A site in `layers` is computed by its
    MoE layer instead of its nodes; the mapping may grow during the walk. With layers None the prefix stays dense.
    Parameters are read from the live model; those that lie in files are let go when a node has used them.
    """

    def __init__(
        self,
        model: nn.Module,
        traced: Traced,
        found: Found,
        batches: Iterable[Batch],
        layers: Mapping[str, nn.Module] | None,
        memory: int,
    ) -> None:
        self._model = model
        self._traced = traced
        self._found = found
        self._batches = batches
        self._layers = layers
        self._nodes = list(traced.graph.graph.nodes)
        self._index = {node: i for i, node in enumerate(self._nodes)}
        self._leaving = last_uses(self._nodes, self._index, found)
        self._states = SpilledList(memory)
        self._positions: list[int] = []
        self._masks: list[TokenMasks] = []
        self._decoding = decoder_nodes(traced)

    def __enter__(self) -> Self:
        for batch in self._batches:
            self.take_up(self.begin(batch))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._states.close()

    def begin(self, batch: Batch) -> WalkState:
        """The state of a batch that has gone nowhere yet."""
        batch = on_device(batch, next(self._model.parameters()).device)
        bound = self._traced.bind(self._model, batch)
        return WalkState({name: bound[name] for name in self._traced.user_inputs}, 0, TokenMasks.of(batch))

    def take_up(self, state: WalkState) -> None:
        """Goes on with one more batch from there, which this walk or an equal one elsewhere has put down."""
        self._states.append(state.values)
        self._positions.append(state.position)
        self._masks.append(state.masks)

    def put_down(self, number: int) -> WalkState:
        """Where batch `number` stands."""
        return WalkState(self._states.load(number), self._positions[number], self._masks[number])

    @torch.no_grad()
    def inputs(self, site: FeedForward) -> Iterator[Tensor]:
        """The FFN's inputs, [tokens, hidden] a batch and call; padding tokens are left out where the batch marks them, in an
        encoder-decoder each stream's own.

        A shared FFN gives the inputs of all its calls, the later ones as its dense form leads to them.
        """
        calls = self._found.calls[site.path]
        for number in range(len(self._states)):
            values = self._advance(number, self._index[calls[0].x] + 1)
            yield self._tokens(calls[0].x, values, calls[0], number)
            position = self._positions[number]
            for call in calls[1:]:
                self._run(values, position, self._index[call.x] + 1)
                position = self._index[call.x] + 1
                yield self._tokens(call.x, values, call, number)

    def output_sum(self, site: FeedForward) -> OutputSum | None:
        """What the site's output goes into, where it runs once and that is known."""
        calls = self._found.calls[site.path]
        return output_sum(calls[0], self._index) if len(calls) == 1 else None

    @torch.no_grad()
    def totals(self, site: FeedForward, nodes: Sequence[fx.Node], until: fx.Node) -> Iterator[Tensor]:
        """The sum of these nodes once the walk has come to `until`, float32 [tokens, width] a batch, tokens as in `inputs`."""
        call = self._found.calls[site.path][0]
        for number in range(len(self._states)):
            values = self._advance(number, self._index[until] + 1)
            yield torch.stack([self._tokens(node, values, call, number).float() for node in nodes]).sum(0)

    @torch.no_grad()
    def leave(self, site: FeedForward) -> None:
        """The site is about to be spliced: a walk on the dense prefix has to pass it while its weights are there."""
        if self._layers is not None:
            return
        for number in range(len(self._states)):
            self._advance(number, self._index[self._found.calls[site.path][-1].y] + 1)

    def _advance(self, number: int, end: int) -> Values:
        values, start = self._states.load(number), self._positions[number]
        if start < end:
            self._run(values, start, end)
            self._states.store(number, values)
            self._positions[number] = end
        return values

    def _run(self, values: Values, start: int, end: int) -> None:
        """Executes nodes start .. end - 1 and forgets what no later node uses."""
        inside, outputs = self._converted()
        for i in range(start, end):
            node = self._nodes[i]
            if node in outputs:
                call, layer = outputs[node]
                run = OverChannels(layer) if call.channels else layer
                values[node.name] = run(self._value(call.x, values))
                let_go(layer.parameters())
            elif node.op == "call_function" and node not in inside:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self._value(n, values))
                values[node.name] = node.target(*args, **kwargs)
                let_go(self._value(other, values) for other in node.all_input_nodes)
            for done in self._leaving.get(i, ()):
                values.pop(done.name, None)

    def _converted(self) -> tuple[set[fx.Node], dict[fx.Node, tuple[Call, nn.Module]]]:
        inside: set[fx.Node] = set()
        outputs = {}
        for path, layer in (self._layers or {}).items():
            for call in self._found.calls.get(path, ()):
                inside |= call.inside
                outputs[call.y] = (call, layer)
        return inside, outputs

    def _value(self, node: fx.Node, values: Values) -> Any:
        if node.name in values:
            return values[node.name]
        if node.op == "get_attr":
            return getattr(self._traced.graph, str(node.target))
        return self._traced.lifted_value(self._model, node.name)

    def _tokens(self, node: fx.Node, values: Values, call: Call, number: int) -> Tensor:
        """The value of a node as [tokens, width], for the tokens of the call."""
        x: Tensor = self._value(node, values)
        x = features_last(x) if call.channels else x
        return self._masks[number].real(x.reshape(-1, x.shape[-1]).cpu(), call.x in self._decoding)


def last_uses(nodes: list[fx.Node], index: Mapping[fx.Node, int], found: Found) -> dict[int, list[fx.Node]]:
    """Position -> nodes whose last use it is. A site's input lives until the site's output is made."""
    last = {node: max((index[user] for user in node.users), default=index[node]) for node in nodes}
    for calls in found.calls.values():
        for call in calls:
            last[call.x] = max(last[call.x], index[call.y])
    leaving: dict[int, list[fx.Node]] = {}
    for node, position in last.items():
        leaving.setdefault(position, []).append(node)
    return leaving
