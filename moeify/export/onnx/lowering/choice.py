"""Which form a layer takes: the fastest on the wanted numbers of tokens, by the cost model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moeify.export.onnx.attach import MoENode
from moeify.export.onnx.forms import FINE, Form, Kind
from moeify.export.onnx.lowering.costs import Costed, Work, milliseconds

#: How much faster a form has to be for what it costs otherwise: two forms keep the weights twice in memory; an operator of ONNX
#: Runtime's own binds the body to that runtime.
_TWO_FORMS, _CONTRIB = 1.05, 1.1
#: Up to so many tokens the form for few may reach.
_FEW = (1, 2, 4, 8)


@dataclass(frozen=True)
class Choice:
    """form: None where the file has no operations of its own for the layer. shown: the form in a word or two."""

    form: Form | None
    reason: str
    shown: str = ""


def best_form(layer: MoENode, tokens: tuple[int, ...], contrib: bool) -> Choice:
    """contrib: may it be the operator of ONNX Runtime?"""
    if not layer.shape.choosing:
        return Choice(Form("masked"), "all experts on: one dense FFN", "dense")  # its body takes no notice of the form

    def price(form: Form) -> float:
        slower = (_TWO_FORMS if form.few else 1) * (_CONTRIB if "contrib" in form.kinds else 1)
        return slower * sum(_time(layer, form, count) / _time(layer, "dense", count) for count in tokens)

    form = min(_forms(layer, contrib), key=price)
    return Choice(form, f"{description(layer)}; {expectation(layer, form, tokens)}", str(form))


def description(layer: MoENode) -> str:
    sizes = f"{min(layer.sizes)}" if layer.size else f"{min(layer.sizes)} to {max(layer.sizes)}"
    on = f"top-{layer.k}" if layer.k else "a threshold, counted as half of them on"
    return f"{len(layer.sizes)} experts of {sizes} neurons, {on}"


def expectation(layer: MoENode, form: Form, tokens: tuple[int, ...]) -> str:
    """How much faster than dense, by the cost model."""
    ratios = ((count, _time(layer, "dense", count) / _time(layer, form, count)) for count in tokens)
    return "expected speed / dense: " + ", ".join(f"{ratio:.1f} at {count} token{'s' * (count > 1)}" for count, ratio in ratios)


def _forms(layer: MoENode, contrib: bool) -> Iterator[Form]:
    """The plainest first: of equals it is taken."""
    operator: tuple[Kind, ...] = ("contrib",) if contrib else ()
    unrolled: tuple[Kind, ...] = ("unrolled",) if len(layer.sizes) < FINE else ()
    many: tuple[Kind, ...] = (*unrolled, "masked", "gathered", *operator)
    few: tuple[Kind, ...] = ("gathered", *operator)
    yield from (Form(kind, size=0 if kind == "unrolled" else layer.size) for kind in many)
    for short in few:
        for long in many:
            if short != long and (limit := _limit(layer, short, long)):
                yield Form(long, short, limit, layer.size)


def _limit(layer: MoENode, few: Kind, many: Kind) -> int:
    """Up to how many tokens `few` is faster; 0 for none."""
    limit = 0
    for count in _FEW:
        if milliseconds(few, _routed(layer), count) > milliseconds(many, _routed(layer), count):
            break
        limit = count
    return limit


def _time(layer: MoENode, form: Form | Costed, tokens: int) -> float:
    if isinstance(form, Form):
        kind: Costed = form.few if form.few and tokens <= form.few_tokens else form.many
    else:
        kind = form
    work = _routed(layer)
    weights = layer.offsets[0] * _weights_of_a_row(layer)
    shared = Work(work.hidden, work.output, 1, 1, layer.offsets[0], weights)
    if kind == "dense":  # the shared rows are rows as all others
        return milliseconds("dense", Work(work.hidden, work.output, 1, 1, layer.offsets[-1], work.weights + weights), tokens)
    return milliseconds(kind, work, tokens) + (milliseconds("dense", shared, tokens) if weights else 0.0)


def _routed(layer: MoENode) -> Work:
    rows, experts = layer.offsets[-1] - layer.offsets[0], len(layer.sizes)
    active = experts / 2 if layer.k is None else float(layer.k)
    return Work(layer.hidden, layer.output, experts, active, rows, rows * _weights_of_a_row(layer))


def _weights_of_a_row(layer: MoENode) -> int:
    return layer.hidden * (1 + layer.shape.gated) + layer.output
