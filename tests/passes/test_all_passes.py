"""What holds for every pass."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

import moeify_passes
from moeify.ir.facts import (
    ActivationSample,
    CoActivation,
    Experts,
    Fact,
    FeedForwards,
    NeuronGroups,
    NeuronStatistics,
    OutputGoals,
    Routing,
)
from moeify.ir.model_graph import ModelGraph
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.context import PassContext
from moeify.pipeline.contract import Pass
from moeify_passes import PASSES
from passes.tiny import HIDDEN, TinyHost, correlated_inputs, data_context, graph_of, random_site

KINDS: list[Any] = list(PASSES)
FACTS = set(get_args(Fact))
ROOT = Path(moeify_passes.__file__).parent

every_pass = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def prepared() -> tuple[ModelGraph, PassContext]:
    """A site that is split already, with every fact there may be."""
    site = random_site()
    graph = graph_of(site)
    groups = tuple(torch.split(torch.arange(site.neurons), 3))
    graph.specs[site.path] = MoESpec(groups)
    context = data_context(correlated_inputs(400), *FACTS)
    context.batches = ({"x": correlated_inputs(400)},)
    context.goals = lambda asked: iter(torch.split(asked.forward(correlated_inputs(400)), 100))
    context.put(None, FeedForwards(1, 0))
    context.put(site, ActivationSample(correlated_inputs(400), 400))
    context.put(site, OutputGoals(site.forward(correlated_inputs(400))))
    context.put(site, NeuronStatistics(400, torch.zeros(site.neurons), torch.ones(site.neurons)))
    context.put(site, CoActivation(torch.zeros(site.neurons + 1, dtype=torch.int64), torch.zeros(0).long(), torch.zeros(0)))
    context.put(site, NeuronGroups(groups, torch.empty(0, dtype=torch.int64)))
    context.put(site, Experts((3,) * 16, True))
    return graph, context


def lead_up(kind: Any, graph: ModelGraph, context: PassContext) -> None:
    """What has to be so before the pass runs: a router there, or the loop over layers not begun."""
    if Routing in kind().needs:
        importlib.import_module("moeify_passes.rewrite.insert_router").InsertRouter().run(graph, context)
    if kind.name == "measure-importance":
        context.inputs = None


@every_pass
def test_is_a_frozen_dataclass_that_keeps_the_contract(kind: Any) -> None:
    assert "__dataclass_params__" in vars(kind)
    assert kind.__dataclass_params__.frozen
    assert isinstance(kind(), Pass)
    assert kind() == kind()


@every_pass
def test_is_named_after_its_file(kind: Any) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.name)
    assert kind.__module__.rsplit(".", 1)[1] == kind.name.replace("-", "_")
    assert kind.__name__ == kind.name.title().replace("-", "")


@every_pass
def test_is_documented(kind: Any) -> None:
    docstring = kind.__doc__
    assert docstring
    assert not docstring.startswith(kind.__name__ + "("), "that is the docstring that dataclass writes"
    for option in dataclasses.fields(kind):
        assert re.search(rf"\b{option.name}\b", docstring), f"{kind.name} does not say what {option.name} is"
    if kind.rewrites:
        spec = importlib.util.find_spec(kind.__module__)
        assert spec is not None
        assert spec.origin is not None
        module = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8")))
        assert module is not None
        assert "=>" in module
        assert "Preserved" in module


@every_pass
def test_every_option_has_a_default_and_a_type(kind: Any) -> None:
    hints = get_type_hints(kind)
    for option in dataclasses.fields(kind):
        assert option.default is not dataclasses.MISSING or option.default_factory is not dataclasses.MISSING
        assert hints[option.name] is not Any


@every_pass
def test_its_facts_are_facts(kind: Any) -> None:
    step = kind()
    assert {*step.needs, *step.uses, *step.gives, *step.keeps} <= FACTS


@every_pass
def test_an_analysis_leaves_specs_as_they_were(kind: Any) -> None:
    graph, context = prepared()
    lead_up(kind, graph, context)
    before = dict(graph.specs)
    changed = kind().run(graph, context)
    really = graph.specs.keys() != before.keys() or any(graph.specs[path] is not spec for path, spec in before.items())
    assert changed == really
    assert kind.rewrites or not really


@every_pass
def test_gives_what_it_promises(kind: Any) -> None:
    graph, context = prepared()
    lead_up(kind, graph, context)
    for fact in kind.gives:
        context.drop(graph.sites[0], tuple(FACTS - {fact}))
    if kind.name == "split-experts":
        context.put(graph.sites[0], NeuronGroups(graph.specs[graph.sites[0].path].experts, torch.empty(0, dtype=torch.int64)))
    kind().run(graph, context)
    for fact in kind.gives:
        assert context.find(None if fact is FeedForwards else graph.sites[0], fact) is not None


@every_pass
def test_survives_a_model_without_feed_forward_networks(kind: Any) -> None:
    graph = ModelGraph(TinyHost())
    assert not kind().run(graph, data_context(torch.zeros(5, HIDDEN), *FACTS))
    assert graph.sites == ()
    assert graph.specs == {}


def test_the_list_of_passes_is_complete() -> None:
    """Every file in analyse, rewrite and check that holds a class with a name is in PASSES."""
    named = set()
    for folder in ("analyse", "rewrite", "check"):
        for file in (ROOT / folder).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "name":
                    named.add(file.stem.replace("_", "-"))
    assert named == {kind.name for kind in KINDS}


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_passes_know_neither_modules_nor_graphs_nor_onnx(file: Path) -> None:
    """No torch.nn (but its functional part), torch.fx or onnx; of moeify only ir, errors, pipeline and layers.routing."""
    imported = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and node.attr == "nn":
            imported.add("torch.nn")
    allowed = ("moeify.ir.", "moeify.errors.", "moeify.pipeline.", "moeify.layers.routing.", "moeify_passes.")
    for name in imported:
        assert name == "torch.nn.functional" or not re.match(r"torch\.(nn|fx)\b|onnx", name), f"{file.name} imports {name}"
        assert not name.startswith("moeify") or name.startswith(allowed), f"{file.name} imports {name}"


def test_routing_is_a_fact_that_compensation_needs() -> None:
    by_name = {kind.name: kind for kind in KINDS}
    assert Routing in by_name["insert-router"]().gives
    assert Routing in by_name["compensate"]().needs
