"""Opaque `moeify::MoE` nodes => what the file holds instead, by the lowering that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from moeify.export.onnx.attach import MoENode, named_nodes
from moeify.export.onnx.forms import Form
from moeify.export.onnx.lowering import automatic, contrib, native, portable, standard
from moeify.export.onnx.lowering.choice import Choice
from moeify.export.onnx.lowering.choices import TOKENS
from moeify.export.onnx.lowering.inlined import tidy
from moeify.export.onnx.report import Lowered

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Lowering:
    """name: as reports give it. choose: a form for a layer, or ConversionError. write: puts it into the model."""

    name: str
    choose: Callable[[MoENode, tuple[int, ...]], Choice]
    write: Callable[[ir.Model, ir.Node, MoENode, Form | None], None]


_BY_NAME: Mapping[str, Lowering] = MappingProxyType(
    {
        "auto": Lowering("portable", automatic.choose, automatic.write),
        "portable": Lowering("portable", portable.choose, portable.write),
        "standard": Lowering("standard", standard.choose, standard.write),
        "contrib": Lowering("contrib", contrib.choose, contrib.write),
        "native": Lowering("native", native.choose, native.write),
    }
)


def lower(
    model: ir.Model, lowering: str = "auto", tokens: tuple[int, ...] = TOKENS
) -> tuple[tuple[MoENode, ...], tuple[Lowered, ...]]:
    """Changes the model. Gives the layers as they were and what became of them.

    lowering: a name of `choices.LOWERINGS`. Raises ConversionError where a layer has no such lowering.
    """
    chosen = _BY_NAME[lowering]
    nodes = named_nodes(model)
    choices = [chosen.choose(layer, tokens) for _, layer in nodes]
    for (node, layer), choice in zip(nodes, choices):
        chosen.write(model, node, layer, choice.form)
    if nodes:
        tidy(model)
    lowered = (Lowered(layer.name, chosen.name, choice.shown, choice.reason) for (_, layer), choice in zip(nodes, choices))
    return tuple(layer for _, layer in nodes), tuple(lowered)
