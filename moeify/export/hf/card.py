"""The model card of a stock checkpoint."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from moeify.export.evaluations import Quality
from moeify.export.hf.making import held
from moeify.export.hf.report import HfReport
from moeify.layers.budget import moe_layers

CARD = "README.md"


def card(
    report: HfReport,
    model: nn.Module,
    recipe: str | None,
    made: Mapping[str, Any] | None,
    quality: Sequence[Quality] = (),
) -> str:
    """Markdown with the header that model hubs read. model: the converted one; recipe: TOML; made: its report.json; quality:
    what it was evaluated on."""
    name = None if recipe is None else tomllib.loads(recipe).get("name")
    lines = [
        "---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [mixture-of-experts, moeify]", "---", "",
        f"# A dense model as a Mixture-of-Experts ({report.model_type})", "",
        f"Made by moeify of a trained dense model{f' with the recipe `{name}`' if name else ''}: {report.shape}.", "",
        "```python", "from transformers import AutoModelForCausalLM", "",
        'model = AutoModelForCausalLM.from_pretrained("PATH")  # no code beside transformers', "```", "",
        "| | |", "| --- | --- |", *_sizes(model), "",
        f"Compared with the converted model: {report.agreement}.",
    ]  # fmt: skip
    if "added up" in report.shape:
        lines += [
            "",
            "The experts of this model are added up, while its class weighs them. So the router's weights were made so small "
            "that the gates are nearly equal, and the experts were scaled up. `moeify import` undoes it: train that.",
        ]
    lines += ["", *(f"Left out of it: {what}." for what in report.lost)]
    lines += [] if made is None else ["", *_quality(made), "", *_perplexities(quality)]
    lines += [] if recipe is None else ["", "## Recipe", "", "```toml", recipe.strip(), "```"]
    return "\n".join(lines).rstrip() + "\n"


def _sizes(model: nn.Module) -> Iterator[str]:
    """Of the stock model: what the converted one has outside of its MoE layers, and plain rows in them."""
    layers = moe_layers(model).values()
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    outside = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in inside)
    shapes = [held(layer.config) for layer in layers]
    used = sum(
        shape.active_fraction(shape.dense_neurons) * shape.dense_neurons * (2 * shape.hidden + shape.output) for shape in shapes
    )
    yield f"| parameters | {outside + sum(shape.parameters for shape in shapes):,} |"
    yield f"| active for a token | {outside + round(used):,} |"


def _quality(made: Mapping[str, Any]) -> Iterator[str]:
    """What the conversion measured: the share of the FFNs that is active, and how far their outputs are from the dense ones."""
    yield from ("## Quality", "")
    if isinstance(made.get("verdict"), str):
        yield from (f"{made['verdict']}.", "")
    yield from ("| | |", "| --- | --- |", f"| active fraction of the FFNs | {made['active_fraction']:.1%} |")
    errors = made.get("layer_errors") or {}
    for name, error in errors.items():
        yield f"| relative squared error of a layer's output, {name} (mean) | {error:.3g} |"
    if not errors:
        yield "| output errors | not measured: converted without calibration text |"


def _perplexities(quality: Sequence[Quality]) -> Iterator[str]:
    """A row for each text that the converted model was evaluated on."""
    if not quality:
        yield "Perplexity: not measured; `moeify evaluate OUT --data TEXT --dense MODEL --record`, then export again."
        return
    yield "| text | tokens | perplexity, dense | converted | converted / dense | active fraction of the FFNs, measured |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in quality:
        cells = (_figure(row.dense, ".3f"), f"{row.converted:.3f}", _figure(row.ratio, ".3f"), _figure(row.active, ".1%"))
        text = row.text.replace("|", "\\|")
        yield f"| {text} | {row.tokens:,} | {' | '.join(cells)} |"


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
