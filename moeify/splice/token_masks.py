"""Which tokens of a batch are real: padding says nothing about a model, so calibration leaves it out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from moeify.frontend.cone_ops import is_check
from moeify.frontend.traced import Traced
from moeify.ir.model_graph import Batch

#: Inputs of an encoder-decoder that belong to its second stream of tokens are named so.
_DECODER = "decoder_"


@dataclass(frozen=True, eq=False)
class TokenMasks:
    """Bool masks [tokens] of a batch, None where all tokens are real. first: of an encoder, or the model's only stream of
    tokens; decoder: of an encoder-decoder's second."""

    first: Tensor | None
    decoder: Tensor | None

    @classmethod
    def of(cls, batch: Batch) -> TokenMasks:
        """Reads attention_mask and decoder_attention_mask, [batch, tokens]; masks of other shapes say nothing of tokens."""
        if not isinstance(batch, dict):
            return cls(None, None)
        return cls(_mask(batch.get("attention_mask")), _mask(batch.get(f"{_DECODER}attention_mask")))

    def real(self, x: Tensor, decodes: bool) -> Tensor:
        """The rows of x [tokens, hidden] that are no padding; decodes: x belongs to the second stream."""
        mask = self.decoder if decodes else self.first
        return x[mask] if mask is not None and len(mask) == len(x) else x


def decoder_nodes(traced: Traced) -> frozenset[fx.Node]:
    """The nodes that depend on an input of an encoder-decoder's decoder: their tokens are the decoder's. (Sizes do not
    count: where both streams are equally long, a graph may read the size of either.)"""
    inputs = {name for name in traced.user_inputs if name.startswith(_DECODER)}
    found: set[fx.Node] = set()
    for node in traced.graph.graph.nodes:
        if (node.op == "placeholder" and node.name in inputs) or not found.isdisjoint(node.all_input_nodes):
            found.update(() if is_check(node) else (node,))
    return frozenset(found)


def _mask(value: object) -> Tensor | None:
    if not isinstance(value, Tensor) or value.ndim != 2 or bool((value != 0).all()):
        return None
    return (value != 0).reshape(-1).cpu()
