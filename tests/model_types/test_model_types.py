"""Model types of transformers by name: what is found in each, what is refused and why, and that converting it changes nothing.

Nothing here knows a type: the config is shrunk by the names of its sizes, the inputs are those that its config tells.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from converted import call, distance
from model_types.names import MODEL_TYPES
from model_types.shrunk import build
from moeify.api import load, open_model, save
from moeify.errors import InputError
from moeify.frontend.trace_state import tracing_state
from moeify.ir.feed_forward import FeedForward, Refusal
from moeify.ir.model_graph import ModelGraph
from moeify.layers.budget import set_top_k
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.pipeline import Pipeline
from moeify_passes.analyse.cluster_neurons import ClusterNeurons
from moeify_passes.analyse.find_feed_forward import FindFeedForward
from moeify_passes.check.match_dense import MatchDense
from moeify_passes.experts.random import Random
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.rewrite.split_experts import SplitExperts
from zoo import ZOO, built

pytestmark = pytest.mark.slow

EXPERTS = 2
_CONVERT = Pipeline(
    (
        FindFeedForward(),
        EachLayer((ClusterNeurons(experts=EXPERTS, by=Random()), SplitExperts(), MatchDense(), InsertRouter(top_k=EXPERTS))),
    )
)


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_model_type(name: str, golden: Callable[[str, str], None], tmp_path: Path) -> None:
    model = built(lambda: build(name, MODEL_TYPES[name]))
    try:
        graph = open_model(model)
        sites, refusals = graph.host.find()
    except InputError as error:
        reason = re.sub(r"difference [0-9.e+-]+", "difference ...", str(error))  # it may be that of random numbers
        golden(f"model_types/{name}.txt", f"{type(model).__name__}\nrefused, {reason}\n")
        return
    found = [*_sites(sites), *_refusals(refusals)] or ["no feed-forward network"]
    golden(f"model_types/{name}.txt", "\n".join([type(model).__name__, *found, ""]))
    if sites:
        _same_after_conversion(model, graph, tmp_path / "out")


def _same_after_conversion(model: nn.Module, graph: ModelGraph, folder: Path) -> None:
    """With all experts on it computes and writes what the dense model did, and comes back from its folder as it was."""
    example = graph.host.example  # type: ignore[attr-defined]  # the eager host
    dense, text = _outputs(model, example), _text(model, example)
    report = _CONVERT.run(graph)
    assert _furthest(_outputs(model, example), dense) < 3e-5
    assert _text(model, example) == text
    set_top_k(model, 1)
    chosen = _outputs(model, example)
    assert _furthest(chosen, dense) > 1e-6, "the MoE layers are not part of what the model computes"
    save(graph, folder, report=report)
    assert _furthest(_outputs(load(folder), example), chosen) < 1e-6


def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """All float tensors of its output, without a cache."""
    with tracing_state(model):
        leaves = pytree.tree_leaves(call(model, example))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()]


def _furthest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest distance over all outputs; infinite values must stand in the same places."""
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    finite = [torch.isfinite(tensor) for tensor in expected]
    assert all(torch.equal(torch.isfinite(a), mask) for a, mask in zip(found, finite))
    pairs = ((a[mask], b[mask]) for a, b, mask in zip(found, expected, finite) if bool(b[mask].any()))
    return max(distance(a, b) for a, b in pairs)


def _text(model: Any, example: dict[str, Any]) -> list[list[int]] | None:
    """Greedy tokens of a model that writes text after text; None for any other."""
    if "input_ids" not in example or "pixel_values" in example or not getattr(model, "can_generate", lambda: False)():
        return None
    prompt = {name: value for name, value in example.items() if name in ("input_ids", "attention_mask")}
    start = {"decoder_start_token_id": 0} if model.config.is_encoder_decoder else {}
    tokens: Tensor = model.generate(**prompt, max_new_tokens=4, do_sample=False, num_beams=1, pad_token_id=0, **start)
    found: list[list[int]] = tokens.tolist()
    return found


def _sites(sites: Iterable[FeedForward]) -> list[str]:
    """One line for all that differ in the numbers of their paths only."""
    return _counted(
        f"{site.path}: {site.kind} {site.activation} {site.hidden} -> {site.neurons} -> {site.output}, {site.rewrite.way}"
        f"{', over dim 1' if site.rewrite.channels else ''}{f', {site.calls} calls' if site.calls > 1 else ''}"
        for site in sites
    )


def _refusals(refusals: Iterable[Refusal]) -> list[str]:
    return _counted(f"{refusal.path}: refused, {refusal.reason}" for refusal in refusals)


def _counted(lines: Iterable[str]) -> list[str]:
    """Equal lines once, with their number; the numbers of layers in paths do not count."""
    paths = (line.partition(": ") for line in lines)
    counts = Counter(f"{re.sub(r'(?<![^.])[0-9]+(?![^.])', '*', path)}: {text}" for path, _, text in paths)
    return [f"{count} x {line}" for line, count in counts.items()]


def test_at_least_sixty_types_that_the_zoo_lacks() -> None:
    zoo_types = {getattr(getattr(make().model, "config", None), "model_type", None) for make in ZOO.values()}
    assert len(set(MODEL_TYPES) - zoo_types) >= 60
