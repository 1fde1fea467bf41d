from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from layers.stochastic_layers import HIDDEN, SIZE, chosen, experts_of, inputs, router_of, stochastic_layer
from moeify.errors import UsageError
from moeify.ir.draws import hashed, ring_scores
from moeify.ir.moe_config import SEEDS, MoEConfig, RouterConfig, Scope
from moeify.layers.experts import run_all
from moeify.layers.inference import set_inference
from moeify.layers.moe_layer import MoELayer

SCOPES: tuple[Scope, ...] = ("forward", "sequence", "token")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def is_uniform(counts: Tensor) -> bool:
    """Does a chi-square test find nothing at the level of one in a thousand?"""
    return float(stats.chisquare(counts.numpy()).pvalue) > 1e-3


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("scope", SCOPES)
def test_what_shares_a_draw_is_what_the_scope_says(scope: Scope, training: bool) -> None:
    layer = stochastic_layer(100, scope=scope).train(training)
    drawn = chosen(layer, inputs(6, 9))
    assert drawn.shape == (6, 9)
    assert (len(set(drawn.flatten().tolist())) == 1) == (scope == "forward")
    assert bool((drawn == drawn[:, :1]).all()) == (scope != "token")
    assert not torch.equal(drawn, chosen(layer, inputs(6, 9)))


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("experts", [2, 3, 7])
@pytest.mark.parametrize("scope", SCOPES)
def test_every_expert_is_drawn_as_often_as_any_other(scope: Scope, experts: int, training: bool) -> None:
    layer = stochastic_layer(experts, scope=scope).train(training)
    counts = torch.zeros(experts)
    for _ in range(1 if scope == "token" else 40 if scope == "sequence" else 1500):
        x = inputs(*((100, 40) if scope == "token" else (50, 1) if scope == "sequence" else (1, 1)))
        counts += torch.bincount(chosen(layer, x).flatten(), minlength=experts)
    assert is_uniform(counts)


@pytest.mark.parametrize("experts", [2, 3, 8])
def test_the_hash_is_uniform_and_places_do_not_follow_one_another(experts: int) -> None:
    ids, places = torch.arange(300).unsqueeze(1), torch.arange(100).unsqueeze(0)
    drawn = hashed(ids, places, 17) % experts
    assert is_uniform(torch.bincount(drawn.flatten(), minlength=experts))
    for one, next_one in ((drawn[:, 1:], drawn[:, :-1]), (drawn[1:], drawn[:-1]), (drawn, hashed(ids, places, 18) % experts)):
        assert is_uniform(torch.bincount(((one - next_one) % experts).flatten(), minlength=experts))


def test_the_hash_is_that_of_the_definition() -> None:
    p = 2**31 - 1

    def mix(v: int) -> int:
        return pow(v % p, 5, p)

    def by_hand(a: int, b: int, seed: int) -> int:
        return mix(48271 * mix(mix(48271 * (a % p) + seed) + 69621 * (b % p)) + 40692)

    cases = [(0, 0, 0), (1, 0, 0), (49_999, 131_071, SEEDS - 1), (2**62 + 5, 7, 1), (-1, 3, 9), (p - 1, p - 1, p - 1)]
    for a, b, seed in cases:
        assert int(hashed(torch.tensor(a), torch.tensor(b), seed)) == by_hand(a, b, seed)


def test_ring_scores_choose_neighbours() -> None:
    scores = ring_scores(torch.tensor([0, 2, 3]), 4)
    assert scores.tolist() == [[1.0, 0.75, 0.5, 0.25], [0.5, 0.25, 1.0, 0.75], [0.75, 0.5, 0.25, 1.0]]


def test_only_the_drawn_expert_is_computed_and_it_is_the_one_that_was_drawn() -> None:
    layer, x = stochastic_layer(4, scope="token", inference="fixed"), inputs(3, 8)
    outputs, drawn = experts_of(layer, x), chosen(layer, x)
    expected = torch.stack(outputs, -1).gather(-1, drawn[..., None, None].expand(3, 8, HIDDEN, 1))[..., 0]
    torch.testing.assert_close(layer(x), expected)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 24 * SIZE * 3 * HIDDEN


@pytest.mark.parametrize("shared", [0, 2])
def test_merged_is_one_expert_of_mean_weights(shared: int) -> None:
    layer, x = stochastic_layer(4, shared=shared, inference="merged"), inputs(3, 8)
    weights = layer._weights
    means: dict[str, Any] = {}
    for name in ("up", "down", "gate", "up_bias", "gate_bias"):
        tensor = getattr(weights.rows, name)
        means[name] = torch.cat((tensor[:shared], torch.stack(tensor[shared:].split(SIZE)).mean(0)))
    rows = x.reshape(-1, HIDDEN)
    h = torch.nn.functional.silu(rows @ means["gate"].T + means["gate_bias"]) * (rows @ means["up"].T + means["up_bias"])
    expected = (h @ means["down"] + layer.output_bias).view(3, 8, HIDDEN)
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    assert layer.route(x).chosen.all()


def test_ensemble_is_the_mean_of_all_outputs() -> None:
    layer, x = stochastic_layer(4, inference="ensemble"), inputs(3, 8)
    torch.testing.assert_close(layer(x), torch.stack(experts_of(layer, x)).mean(0))
    assert torch.equal(layer.route(x).gates, torch.full((24, 4), 0.25))


@pytest.mark.parametrize("mode", ["fixed", "merged", "ensemble"])
def test_training_draws_whatever_inference_does(mode: Any) -> None:
    layer, x = stochastic_layer(4, scope="token", inference=mode).train(), inputs(5, 9)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_k_experts_are_averaged() -> None:
    layer, x = stochastic_layer(4, top_k=2, inference="fixed"), inputs(3, 8)
    routing = layer.route(x)
    assert (routing.chosen.sum(-1) == 2).all()
    assert (routing.gates.sum(-1) == 1).all()


def test_a_seed_gives_the_same_sequence_of_draws_without_touching_torchs_generator() -> None:
    layer, x = stochastic_layer(8, scope="token"), inputs(4, 9)
    before = torch.random.get_rng_state()
    first = [chosen(layer, x) for _ in range(3)]
    assert torch.equal(before, torch.random.get_rng_state())
    set_inference(layer, "random")
    assert all(torch.equal(chosen(layer, x), drawn) for drawn in first)
    set_inference(layer, "random", seed=4)
    assert not torch.equal(chosen(layer, x), first[0])


def test_a_checkpointed_block_draws_the_same_experts_again() -> None:
    layer, x = stochastic_layer(8, scope="token").train(), inputs(4, 9).requires_grad_()
    gradients = []
    for again in (False, True):
        torch.manual_seed(5)
        y: Any = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
        torch.rand(3)
        gradients.append(torch.autograd.grad(y.square().sum(), [x, layer.up]))
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["copy", "pickle"])
def test_a_copy_goes_on_where_the_original_is(copied: Any) -> None:
    layer, x = stochastic_layer(8, scope="token"), inputs(4, 9)
    chosen(layer, x)
    other = copied(layer)
    assert torch.equal(chosen(other, x), chosen(layer, x))


def test_compiled_it_trains_and_draws() -> None:
    layer, x = stochastic_layer(4, scope="token").train(), inputs(16, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    first.square().sum().backward()
    assert layer.up.grad is not None
    assert (layer.up.grad.view(4, -1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("lead", [(), (1,), (0,), (5,), (2, 3), (2, 3, 4), (0, 3)])
@pytest.mark.parametrize("mode", ["random", "fixed", "merged", "ensemble"])
@pytest.mark.parametrize("scope", SCOPES)
def test_any_leading_dims(lead: tuple[int, ...], mode: Any, scope: Scope) -> None:
    layer = stochastic_layer(3, scope=scope, inference=mode)
    assert layer(inputs(*lead)).shape == (*lead, HIDDEN)
    assert layer.train()(inputs(*lead)).shape == (*lead, HIDDEN)
    assert layer.route(inputs(*lead)).chosen.shape == (math.prod(lead), 3)


def test_half_precision_draws_from_all_experts() -> None:
    layer = stochastic_layer(100, scope="token").bfloat16()
    counts = torch.bincount(chosen(layer, inputs(100, 100).bfloat16()).flatten(), minlength=100)
    assert is_uniform(counts)


def test_inference_is_set_on_all_layers_or_none() -> None:
    model = torch.nn.Sequential(stochastic_layer(), torch.nn.Linear(HIDDEN, HIDDEN), stochastic_layer())
    set_inference(model, "fixed", scope="token", seed=SEEDS - 2)
    routers = [router_of(layer) for layer in model if isinstance(layer, MoELayer)]
    assert [r.config.seed for r in routers] == [SEEDS - 2, SEEDS - 1]
    assert all((r.config.inference, r.config.scope, r.mode) == ("fixed", "token", "fixed") for r in routers)
    with pytest.raises(UsageError, match=f"seed of a stochastic router is {SEEDS}"):
        set_inference(model, "merged", seed=SEEDS - 1)
    assert [r.config.inference for r in routers] == ["fixed", "fixed"]
    set_inference(model, "merged", layers="2")
    assert [r.config.inference for r in routers] == ["fixed", "merged"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: set_inference(torch.nn.Linear(2, 2), "fixed"), "Linear: no stochastic MoE layer"),
        (lambda: set_inference(stochastic_layer(), "fixed", layers="x*"), "none matches 'x*'"),
        (lambda: set_inference(stochastic_layer(), "mean"), "inference of a stochastic router is 'mean': choose one of random"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: RouterConfig("stochastic", scope="batch"), "scope of a stochastic router is 'batch': choose one of forward"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: RouterConfig("stochastic", seed=-1), "seed of a stochastic router is -1: choose a whole number from 0"),
        (
            lambda: MoEConfig(4, 4, "relu", False, (0, 2, 4), RouterConfig("stochastic", inference="merged")),
            "merged inference takes the mean of experts that are copies: these are none",
        ),
    ],
)
def test_refuses(call: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        call()
    assert message in str(error.value)


def test_run_all_of_one_merged_expert_is_a_dense_network() -> None:
    layer, x = stochastic_layer(1), inputs(7)
    torch.testing.assert_close(run_all(x, layer._weights.merged(), None), layer(x))
