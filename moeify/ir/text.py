"""The printed form of sites and specs: what golden tests compare and `moeify inspect` shows."""

from __future__ import annotations

from moeify.ir.feed_forward import FeedForward, Refusal, Weight
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_spec import MoESpec


def weight_text(weight: Weight | None) -> str:
    """`name[rows] [shape]`, with ^T where the host stores the transpose."""
    if weight is None:
        return "-"
    rows = "" if weight.rows is None else f"[{weight.rows[0]}:{weight.rows[1]}]"
    return f"{weight.parameter}{rows}{'^T' if weight.transposed else ''} {list(weight.shape)}"


def site_text(site: FeedForward) -> str:
    """Several lines for one site."""
    head = f"{site.path}: {site.kind} {site.activation} {site.hidden} -> {site.neurons} -> {site.output}"
    lines = [head + (f", {site.calls} calls" if site.calls > 1 else "")]
    names = ("gate", "gate_bias", "up", "up_bias", "down", "output_bias")
    lines += [f"  {name} = {weight_text(weight)}" for name in names if (weight := getattr(site, name)) is not None]
    modules = ", ".join(f"{role}={path}" for role, path in site.rewrite.modules.items())
    dropout = "".join(
        f", {name} dropout {value:g}"
        for name, value in (("hidden", site.rewrite.hidden_dropout), ("output", site.rewrite.output_dropout))
        if value
    )
    channels = ", over dim 1" if site.rewrite.channels else ""
    lines.append(f"  rewrite = {site.rewrite.way}({modules}){dropout}{channels}")
    return "\n".join(lines)


def refusal_text(refusal: Refusal) -> str:
    return f"{refusal.path}: refused, {refusal.reason}"


def spec_text(spec: MoESpec) -> str:
    """Several lines for one spec."""
    sizes = [len(e) for e in spec.experts]
    even = f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 else " + ".join(map(str, sizes))
    lines = [f"experts {even}, shared {len(spec.shared)}"]
    if spec.shards is not None:
        lines.append(f"  copies = {len(sizes) // spec.shards}" + (f" in {spec.shards} shards" if spec.shards > 1 else ""))
    if spec.router is not None:
        lines.append(f"  router = {spec.router.config.kind}" + (f" width {w}" if (w := spec.router.config.width) else ""))
    rule = spec.gate_rule + (" normalized" if spec.normalize else "") + (" by a detached sum" if spec.detach_sum else "")
    choice = [f"top-{spec.top_k}"] if spec.top_k is not None else []
    choice += [f"threshold {spec.threshold:g}"] if spec.threshold is not None else []
    lines.append(f"  choice = {' and '.join(choice) or 'all'}, gate {rule}")
    if spec.compensation.idle is not None:
        lines.append("  compensation = idle vectors")
    if spec.compensation.low_rank_in is not None:
        lines.append(f"  compensation = low rank {spec.compensation.low_rank_in.shape[0]}")
    if spec.composed is not None:
        lines.append(f"  rows = frozen core + {spec.composed.rule}")
    if spec.weights:
        lines.append(f"  new weights = {', '.join(sorted(spec.weights))}")
    return "\n".join(lines)


def graph_text(graph: ModelGraph) -> str:
    """The whole graph: sites with their specs, then refusals."""
    parts = []
    for site in graph.sites:
        parts.append(site_text(site))
        if site.path in graph.specs:
            parts.append("  => " + spec_text(graph.specs[site.path]).replace("\n", "\n  "))
    parts.extend(refusal_text(r) for r in graph.refusals)
    return "\n".join(parts) + "\n"
