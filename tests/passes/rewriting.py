"""One sentence for a rewrite: its golden text, what the layer then computes, and that a second run changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from moe_reference import composed, moe
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_spec import MoESpec
from moeify.ir.text import graph_text
from moeify.pipeline.context import PassContext
from moeify.pipeline.contract import Pass

GOLDEN = Path(__file__).parent.parent / "golden" / "passes"


def check_rewrite(step: Pass, graph: ModelGraph, context: PassContext, golden: str, request: pytest.FixtureRequest) -> None:
    """Runs the pass: it says that it changed specs; the text is that of tests/golden/passes/<golden>.txt (written anew with
    --update-golden); with all experts on the layers equal the dense ones; a second run changes nothing."""
    before = dict(graph.specs)
    assert step.run(graph, context)
    assert all(graph.specs[site.path] is not before.get(site.path) for site in graph.sites)
    compare_golden(graph_text(graph), golden, request)
    for site in graph.sites:
        assert dense_distance(site, graph.specs[site.path]) < 1e-5
    after = dict(graph.specs)
    assert not step.run(graph, context)
    assert all(graph.specs[path] is spec for path, spec in after.items())


def compare_golden(text: str, name: str, request: pytest.FixtureRequest) -> None:
    """Asserts that the text is that of the golden file, or writes it with --update-golden."""
    path = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden", default=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8")


def dense_distance(site: FeedForward, spec: MoESpec) -> float:
    """Largest difference / largest output between the reference with all experts on and the dense FFN, in float64."""
    x = torch.randn(50, site.hidden, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = site.forward(x)
    return float((reference(site, spec.all_on(), x) - expected).abs().max() / expected.abs().max())


def reference(site: FeedForward, spec: MoESpec, x: Tensor) -> Tensor:
    """The layer's output by tests/moe_reference.py, float64 [tokens, output] for float64 x [tokens, hidden]."""
    tensors = {name: value.double().numpy() for name, value in spec.tensors(site).items() if not name.startswith("router.")}
    scores = torch.zeros(len(x), len(spec.experts)) if spec.router is None else spec.router.scores(x)
    if (form := spec.composed) is not None:
        core, own = (
            {n.partition(".")[2]: tensors.pop(n) for n in list(tensors) if n.startswith(f"{p}.")}
            for p in ("core", form.rule.kind)
        )
        tensors |= composed(core, own, form.rule.kind, rank=form.rule.rank, alpha=form.rule.alpha)
    y = moe(
        x.numpy(),
        scores.double().numpy(),
        tensors.pop("up"),
        tensors.pop("down"),
        np.array(spec.offsets),
        k=spec.top_k,
        threshold=spec.threshold,
        activation=site.activation,
        gate_rule=spec.gate_rule,
        normalize=spec.normalize,
        **tensors,
    )
    return torch.from_numpy(y)
