from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import Experts
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_config import RouterConfig
from moeify.ir.moe_spec import MoESpec, Router
from moeify.ir.text import graph_text
from moeify.pipeline.context import PassContext
from moeify_passes.check.match_dense import MatchDense
from moeify_passes.rewrite.insert_router import InsertRouter
from moeify_passes.rewrite.upcycle_experts import UpcycleExperts
from moeify_passes.routers.average_key import AverageKey
from moeify_passes.routers.random_router import RandomRouter
from moeify_passes.upcycling.checkpoints import Checkpoints
from moeify_passes.upcycling.drop import Drop
from moeify_passes.upcycling.lora import Lora
from moeify_passes.upcycling.noise import Noise
from moeify_passes.upcycling.residual import Residual
from passes.rewriting import compare_golden, reference
from passes.tiny import NEURONS, SITES, graph_of, random_site

every_site = pytest.mark.parametrize("caption", SITES)
VARIANTS = {
    "copies": UpcycleExperts(copies=3),
    "shards": UpcycleExperts(copies=3, shards=4),
    "shared": UpcycleExperts(copies=2, shared=True),
    "shards_shared": UpcycleExperts(copies=2, shards=2, shared=True),
    "drop": UpcycleExperts(copies=2, by=Drop()),
    "noise": UpcycleExperts(copies=2, by=Noise()),
    "residual": UpcycleExperts(copies=3, by=Residual()),
    "residual_shared": UpcycleExperts(copies=2, shared=True, by=Residual()),
    "lora": UpcycleExperts(copies=3, by=Lora(rank=2)),
    "lora_shared": UpcycleExperts(copies=2, shared=True, by=Lora(rank=3, alpha=1.0)),
}
FROZEN = {"residual": Residual(), "lora": Lora(rank=2)}


def upcycled(site: FeedForward, step: UpcycleExperts, context: PassContext | None = None) -> MoESpec:
    graph = graph_of(site)
    assert step.run(graph, context or PassContext())
    return graph.specs[site.path]


def layer_distance(site: FeedForward, spec: MoESpec) -> float:
    """Of the layer as the reference computes it from the dense FFN, in float64."""
    x = torch.randn(40, site.hidden, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = site.forward(x)
    return float((reference(site, spec, x) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_upcycles(variant: str, request: pytest.FixtureRequest) -> None:
    graph, context = graph_of(*(make() for make in SITES.values())), PassContext()
    step = VARIANTS[variant]
    assert step.run(graph, context)
    compare_golden(graph_text(graph), f"upcycle_experts_{variant}", request)
    after = dict(graph.specs)
    assert not step.run(graph, context)
    for site in graph.sites:
        assert graph.specs[site.path] is after[site.path]
        assert step.foresee(site, None) == replace(after[site.path], weights={}).config(site)
        fact = context.get(site, Experts)
        assert (fact.sizes, fact.partition) == (tuple(map(len, after[site.path].experts)), False)
        assert fact.copies == (variant not in ("drop", "noise"))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shards", [1, 2, 3, 4])
@every_site
def test_the_mean_of_equal_copies_is_the_dense_network(caption: str, shards: int, shared: bool) -> None:
    site = SITES[caption]()
    spec = upcycled(site, UpcycleExperts(copies=2, shards=shards, shared=shared))
    rounded = site.up.read().dtype == torch.bfloat16 and shards == 3
    assert layer_distance(site, spec) < (1e-2 if rounded else 1e-6)


@pytest.mark.parametrize("by", FROZEN.values(), ids=FROZEN)
@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "one"])
@pytest.mark.parametrize("shared", [False, True])
@every_site
def test_so_are_experts_on_a_frozen_core(caption: str, shared: bool, gate: Any, by: Residual | Lora) -> None:
    site = SITES[caption]()
    graph, context = graph_of(site), PassContext()
    UpcycleExperts(copies=3, shared=shared, by=by).run(graph, context)
    InsertRouter(top_k=2, gate=gate, normalize=True, by=RandomRouter(std=1.0)).run(graph, context)
    MatchDense(tolerance=1e-5).run(graph, context)
    assert context.measurements[site.path]["dense_distance"] < 1e-5
    assert layer_distance(site, graph.specs[site.path]) < 1e-6


def test_the_core_is_held_once_and_what_is_trained_starts_at_nothing() -> None:
    site = random_site(gated=True, biases=True)
    tensors = upcycled(site, UpcycleExperts(copies=3, by=Lora(rank=2))).tensors(site)
    for name in ("up", "gate", "down", "up_bias", "gate_bias"):
        assert torch.equal(tensors[f"core.{name}"], getattr(site, name).read())
    for name, width in (("up", 12), ("gate", 12), ("down", NEURONS)):
        first, second = tensors[f"lora.{name}_a"], tensors[f"lora.{name}_b"]
        assert first.shape == (3, 2, width)
        assert 0.8 < float(first.abs().max()) * width**0.5 < 1
        assert not torch.equal(first[0], first[1])
        assert not second.any()
    residual = upcycled(site, UpcycleExperts(copies=3, by=Residual())).tensors(site)
    assert {n: tuple(t.shape) for n, t in residual.items() if n.startswith("residual.")} == {
        f"residual.{name}": (3, *getattr(site, name).read().shape) for name in ("up", "gate", "down", "up_bias", "gate_bias")
    }
    assert not any(value.any() for name, value in residual.items() if name.startswith("residual."))


@pytest.mark.parametrize("by", FROZEN.values(), ids=FROZEN)
def test_beside_a_shared_expert_the_core_counts_half(by: Residual | Lora) -> None:
    site = random_site(gated=True)
    spec = upcycled(site, UpcycleExperts(copies=2, shared=True, by=by))
    assert spec.composed is not None
    assert spec.composed.core.keys() == {"down"}
    assert torch.equal(spec.tensors(site)["core.down"], site.down.read() / 2)
    assert spec.config(site).own["up" if by.kind == "residual" else "up_a"][0] == 3


def test_match_dense_fails_on_a_core_that_is_not_the_dense_network() -> None:
    site = random_site("net.mlp")
    graph, context = graph_of(site), PassContext()
    UpcycleExperts(copies=3, by=Lora(rank=2)).run(graph, context)
    spec = graph.specs[site.path]
    assert spec.composed is not None
    own = {name: torch.full(shape, 0.01) for name, shape in spec.config(site).own.items()}
    graph.specs[site.path] = replace(spec, composed=replace(spec.composed, own=own))
    with pytest.raises(ConversionError, match=r"^net\.mlp: the experts differ from the dense FFN by 0\.0"):
        MatchDense().run(graph, context)


@pytest.mark.parametrize("by", FROZEN.values(), ids=FROZEN)
@every_site
def test_average_keys_of_composed_rows(caption: str, by: Residual | Lora) -> None:
    site = SITES[caption]()
    graph, context = graph_of(site), PassContext()
    UpcycleExperts(copies=2, by=by).run(graph, context)
    InsertRouter(by=AverageKey()).run(graph, context)
    router = graph.specs[site.path].router
    assert router is not None
    torch.testing.assert_close(router.tensors["weight"], site.keys().double().mean(0).expand(2, -1).float())


@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "one"])
@pytest.mark.parametrize(("shards", "top_k"), [(1, 1), (1, 2), (4, 4), (4, 8), (4, None)])
@every_site
def test_it_stays_so_behind_a_new_router(caption: str, shards: int, top_k: int | None, gate: Any) -> None:
    site = SITES[caption]()
    graph, context = graph_of(site), PassContext()
    UpcycleExperts(copies=3, shards=shards).run(graph, context)
    InsertRouter(top_k=top_k, gate=gate, normalize=True, by=RandomRouter(std=1.0)).run(graph, context)
    MatchDense(tolerance=1e-5).run(graph, context)
    assert context.measurements[site.path]["dense_distance"] < 1e-5
    assert graph.specs[site.path].top_k == (top_k or 8)
    assert layer_distance(site, graph.specs[site.path]) < 1e-6


def test_shards_of_a_gated_ffn_leave_the_gate_and_those_of_a_plain_one_the_up_matrix() -> None:
    gated, plain = (random_site(gated=gated, biases=True) for gated in (True, False))
    assert set(upcycled(gated, UpcycleExperts(copies=2, shards=3)).weights) == {"up", "up_bias", "down"}
    assert set(upcycled(plain, UpcycleExperts(copies=2, shards=3)).weights) == {"down"}
    assert torch.equal(upcycled(plain, UpcycleExperts(copies=2, shards=3)).weights["down"], 3 * plain.down.read().repeat(2, 1))


def test_plain_copies_hold_no_weights_of_their_own() -> None:
    assert upcycled(random_site(), UpcycleExperts(copies=4)).weights == {}


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_drop_redraws_the_same_neurons_everywhere_and_others_in_each_copy(share: float) -> None:
    site = random_site(gated=True, biases=True)
    spec = upcycled(site, UpcycleExperts(copies=3, by=Drop(share)))
    redrawn = []
    for copy in range(3):
        rows = slice(copy * NEURONS, (copy + 1) * NEURONS)
        changed = [
            (spec.weights[name][rows] != dense.read()).reshape(NEURONS, -1).any(1)
            for name in ("up", "gate", "down", "up_bias", "gate_bias")
            if (dense := getattr(site, name)) is not None
        ]
        assert all(torch.equal(one, changed[0]) for one in changed)
        assert int(changed[0].sum()) == round(share * NEURONS)
        redrawn.append(changed[0])
    assert share == 1 or not torch.equal(redrawn[0], redrawn[1])


def test_drop_keeps_mean_and_deviation_of_what_it_replaces() -> None:
    base = random_site(neurons=4000)
    shifted = replace(base.up, load=lambda _: 5 + 3 * base.up.read())
    spec = upcycled(replace(base, up=shifted), UpcycleExperts(copies=1, by=Drop(1.0)))
    std, mean = torch.std_mean(spec.weights["up"])
    want_std, want_mean = torch.std_mean(shifted.read())
    assert float(mean) == pytest.approx(float(want_mean), rel=0.01)
    assert float(std) == pytest.approx(float(want_std), rel=0.01)


def test_noise_has_the_size_that_was_asked_for_and_spares_biases() -> None:
    site = random_site(biases=True, neurons=2000)
    spec = upcycled(site, UpcycleExperts(copies=2, by=Noise(0.1)))
    noise = spec.weights["up"] - site.up.read().repeat(2, 1)
    assert float(noise.std() / site.up.read().std()) == pytest.approx(0.1, rel=0.02)
    assert not torch.equal(noise[:2000], noise[2000:])
    assert "up_bias" not in spec.weights


def checkpoint_context(**states: Callable[[str], Tensor]) -> PassContext:
    context = PassContext()
    context.checkpoint = lambda path: states[path]
    return context


def test_checkpoints_are_the_experts_and_their_output_biases_are_averaged() -> None:
    site = random_site(gated=True, biases=True)
    handles = [getattr(site, name) for name in ("up", "gate", "down", "up_bias", "gate_bias", "output_bias")]
    own = {handle.parameter: handle.read() for handle in handles}
    context = checkpoint_context(a=lambda name: own[name], b=lambda name: 2 * own[name])
    spec = upcycled(site, UpcycleExperts(by=Checkpoints(("a", "b", "b"))), context)
    assert spec.config(site).experts == 3
    for name in ("up", "gate", "down", "up_bias", "gate_bias"):
        dense = getattr(site, name).read()
        torch.testing.assert_close(spec.weights[name], torch.cat((dense, 2 * dense, 2 * dense)))
    torch.testing.assert_close(spec.weights["output_bias"], own[site.path + ".output_bias"] * 5 / 3)
    assert not context.get(site, Experts).copies


def test_checkpoints_keep_how_the_host_stores_a_matrix() -> None:
    site = random_site()
    stored = torch.randn(NEURONS + 5, 12).T
    fused = replace(site.up, load=lambda _: stored, rows=(5, NEURONS + 5), transposed=True)
    context = checkpoint_context(a=lambda name: stored if name == fused.parameter else site.down.read())
    spec = upcycled(replace(site, up=fused), UpcycleExperts(by=Checkpoints(("a", "a"))), context)
    torch.testing.assert_close(spec.weights["up"][:NEURONS], stored.T[5:])


def test_seeds_decide_and_layers_differ() -> None:
    step, one, other = UpcycleExperts(copies=2, by=Drop()), random_site("a"), random_site("b")
    first = upcycled(one, step, PassContext(seed=1)).weights["up"]
    assert torch.equal(first, upcycled(one, step, PassContext(seed=1)).weights["up"])
    assert not torch.equal(first, upcycled(one, step, PassContext(seed=2)).weights["up"])
    assert not torch.equal(first, upcycled(other, step, PassContext(seed=1)).weights["up"])


def test_a_virtual_group_has_one_row() -> None:
    site = random_site()
    graph, context = graph_of(site), PassContext()
    UpcycleExperts(copies=3, shards=4).run(graph, context)
    InsertRouter(by=RandomRouter()).run(graph, context)
    router = graph.specs[site.path].router
    assert router is not None
    groups = router.tensors["weight"].view(3, 4, 12)
    assert torch.equal(groups, groups[:, :1].expand_as(groups))
    assert len({tuple(row) for row in groups[:, 0].tolist()}) == 3
    assert float(groups.std()) == pytest.approx(0.02, rel=0.3)


#: caption, the shards, the router pass: what match-dense must not promise, and so must not fail on.
UNPROMISED: list[tuple[str, int, InsertRouter]] = [
    ("half a copy", 4, InsertRouter(top_k=2, normalize=True, by=RandomRouter())),
    ("shards with scores of their own", 4, InsertRouter(top_k=4, normalize=True, by=AverageKey())),
    ("gates that do not sum to 1", 1, InsertRouter(top_k=2, gate="sigmoid", by=RandomRouter())),
    ("two with gate one", 1, InsertRouter(top_k=2, by=RandomRouter())),
]


@pytest.mark.parametrize(("shards", "router"), [c[1:] for c in UNPROMISED], ids=[c[0] for c in UNPROMISED])
def test_match_dense_reports_the_routed_distance_where_nothing_was_promised(shards: int, router: InsertRouter) -> None:
    site = random_site()
    graph, context = graph_of(site), PassContext()
    UpcycleExperts(copies=3, shards=shards).run(graph, context)
    router.run(graph, context)
    MatchDense().run(graph, context)
    assert context.measurements[site.path]["dense_distance"] > 0.01


def test_match_dense_fails_on_a_routed_copy_that_is_not_what_it_says() -> None:
    site = random_site("net.mlp")
    graph, context = graph_of(site), PassContext()
    UpcycleExperts(copies=3).run(graph, context)
    InsertRouter(normalize=True, by=RandomRouter()).run(graph, context)
    spec = graph.specs[site.path]
    graph.specs[site.path] = replace(spec, weights={"down": 1.01 * site.down.read().repeat(3, 1)})
    with pytest.raises(ConversionError, match=r"^net\.mlp: the experts differ from the dense FFN by 0\.0"):
        MatchDense().run(graph, context)


def test_a_layer_with_a_router_is_not_upcycled() -> None:
    site = random_site("net.mlp")
    graph = graph_of(site)
    router = Router(RouterConfig("linear"), {"weight": torch.ones(1, 12)})
    graph.specs[site.path] = MoESpec((torch.arange(NEURONS),), router=router)
    with pytest.raises(ConversionError, match=r"^net\.mlp: has a router already: an FFN is upcycled once"):
        UpcycleExperts().run(graph, PassContext())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UpcycleExperts(copies=0), "upcycle-experts.copies is 0: choose 1 or more"),
        (lambda: UpcycleExperts(shards=0), "upcycle-experts.shards is 0: choose 1 or more"),
        (lambda: UpcycleExperts(copies=10**9), "upcycle-experts makes 1000000000 experts a layer: choose 65536 or fewer"),
        (
            lambda: UpcycleExperts(copies=3, by=Checkpoints(("a", "b"))),
            "upcycle-experts.copies is 3 but checkpoints.paths names 2: give as many, or leave copies out",
        ),
        (lambda: Checkpoints(("a",)), "checkpoints.paths names 1 checkpoints: give two or more"),
        (lambda: Checkpoints([1, 2]), "checkpoints.paths is [1, 2]: give a list of paths"),  # type: ignore[list-item]  # wrong on purpose
        (lambda: Noise(0.0), "noise.std is 0.0: choose a number above 0"),
        (lambda: Noise(float("nan")), "noise.std is nan: choose a number above 0"),
        (lambda: Drop(0.0), "drop.share is 0.0: choose a share of the neurons above 0 and up to 1"),
        (lambda: Drop(1.5), "drop.share is 1.5: choose a share of the neurons above 0 and up to 1"),
        (lambda: Lora(rank=0), "lora.rank is 0: choose 1 or more"),
        (lambda: Lora(alpha=0.0), "lora.alpha is 0.0: choose a number above 0, such as 16"),
        (lambda: Lora(alpha=float("nan")), "lora.alpha is nan: choose a number above 0, such as 16"),
        (
            lambda: UpcycleExperts(by=Lora(rank=11)).foresee(random_site("a"), None),
            "lora.rank is 11 but the matrices of a (12 -> 48 -> 10) have rank 10 at most: choose 1 to 10",
        ),
        (
            lambda: UpcycleExperts(by=Lora(rank=11)).run(graph_of(random_site("a")), PassContext()),
            "lora.rank is 11 but the matrices of a (12 -> 48 -> 10) have rank 10 at most: choose 1 to 10",
        ),
        (
            lambda: UpcycleExperts(shards=2, by=Residual()),
            "upcycle-experts.shards is 2 and by is residual: an expert on a frozen core is the whole core",
        ),
        (lambda: RandomRouter(-1.0), "random.std is -1.0: choose a number above 0"),
        (lambda: InsertRouter(detach_sum=True), "insert-router.detach_sum is about the sum that normalize divides by"),
        (
            lambda: UpcycleExperts(shards=5).foresee(random_site("a"), None),
            "upcycle-experts.shards is 5: the 48 neurons of a do not divide by it; choose 4 or 6",
        ),
        (
            lambda: UpcycleExperts().foresee(random_site("a"), UpcycleExperts().foresee(random_site("a"), None)),
            "upcycle-experts: a has experts by then: leave the pass that makes them out",
        ),
    ],
)
def test_refuses(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)


def test_other_checkpoints_need_somebody_who_opens_them() -> None:
    with pytest.raises(ConversionError, match=r"^a: this run cannot open other checkpoints of the model"):
        upcycled(random_site(), UpcycleExperts(by=Checkpoints(("a", "b"))))
