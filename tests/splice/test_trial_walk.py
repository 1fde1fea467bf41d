"""The output where other functions stand in for FFNs, against the model run by hand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn

from converted import opened
from moeify.frontend.load_model import load_model
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import ModelGraph, StandIn
from moeify.splice.eager_host import EagerHost
from splice.test_effects import host_of, logits
from zoo import ZOO, Zoo


def halved(site: FeedForward) -> StandIn:
    return lambda x: 0.5 * site.forward(x)


def by_hand(zoo: Zoo, sites: Sequence[FeedForward], kl: bool) -> float:
    """The distance where these sites say half of what they said."""

    def halve(module: nn.Module, args: object, y: Tensor) -> Tensor:
        return 0.5 * y

    with torch.no_grad(), ExitStack() as stack:
        before = logits(zoo)
        for site in sites:
            stack.callback(zoo.model.get_submodule(site.path).register_forward_hook(halve).remove)
        after = logits(zoo)
    if not kl:
        return float(((before - after).square().sum(-1) / before.square().sum(-1)).mean())
    p = before.log_softmax(-1)
    return float((p.exp() * (p - after.log_softmax(-1))).sum(-1).mean())


@pytest.mark.parametrize("name", ["llama", "residual-stack"])
def test_stand_ins_do_what_hooks_do_from_wherever_a_trial_has_come(name: str) -> None:
    zoo = ZOO[name]()
    host = host_of(zoo)
    sites, _ = host.find()
    with host.trials([zoo.example]) as start:
        assert start.distance({}) == pytest.approx(0.0, abs=1e-6)
        assert start.distance({site.path: site.forward for site in sites}) == pytest.approx(0.0, abs=1e-5)
        wanted = {n: by_hand(zoo, sites[:n], name == "llama") for n in (1, 2)}
        assert min(wanted.values()) > 1e-6
        for _ in range(2):  # a trial stays as it is
            assert start.distance({sites[0].path: halved(sites[0])}) == pytest.approx(wanted[1], rel=1e-3)
            behind = start.past(sites[0], halved(sites[0]))
            assert behind.distance({}) == pytest.approx(wanted[1], rel=1e-3)
            assert behind.distance({sites[1].path: halved(sites[1])}) == pytest.approx(wanted[2], rel=1e-3)
            assert behind.past(sites[1], halved(sites[1])).distance({}) == pytest.approx(wanted[2], rel=1e-3)


@pytest.mark.parametrize("name", ["albert", "t5", "bert"])
def test_a_stand_in_stands_in_for_every_call(name: str) -> None:
    zoo, graph = opened(name)
    sites, _ = graph.host.find()
    with graph.host.trials([zoo.example]) as start:
        ahead = start.distance({site.path: halved(site) for site in sites})
        trial = start
        for site in sites:
            trial = trial.past(site, halved(site))
        assert trial.distance({}) == pytest.approx(ahead, rel=1e-5)
        assert ahead > 1e-6


@pytest.mark.parametrize("name", ["albert", "distilbert"])
def test_padding_does_not_count(name: str) -> None:
    """Rows that are filled up are as far from the dense model as the same rows alone."""
    zoo = ZOO[name]()
    assert isinstance(zoo.example, dict)
    ids = zoo.example["input_ids"][:1]
    short, length = ids[:, :3], ids.shape[1]
    padded = {key: value[:1].clone() for key, value in zoo.example.items()} | {"attention_mask": torch.ones_like(ids)}
    padded["input_ids"][0, 3:] = 1
    padded["attention_mask"][0, 3:] = 0
    assert length > 3
    alone = {key: value[:1, :3] for key, value in zoo.example.items()} | {"input_ids": short}
    alone["attention_mask"] = torch.ones_like(short)
    graph = ModelGraph(EagerHost(load_model(zoo.model, example=padded)))
    sites, _ = graph.host.find()
    functions = {site.path: halved(site) for site in sites}
    with graph.host.trials([padded]) as filled, graph.host.trials([alone]) as bare:
        assert bare.distance(functions) > 1e-6
        assert filled.distance(functions) == pytest.approx(bare.distance(functions), rel=1e-3)
