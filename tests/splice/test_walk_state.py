"""A walk that is put down and taken up elsewhere, and effects that are asked for in parts, give what one in one piece gives."""

from __future__ import annotations

import pytest
import torch

from converted import opened
from moeify.splice.eager_host import UNBOUNDED, EagerHost
from splice.test_walk import batches_of


@pytest.mark.parametrize("name", ["albert", "llama", "t5"])
def test_every_step_of_a_walk_can_be_one_of_another(name: str) -> None:
    zoo, graph = opened(name)
    host, batches = graph.host, batches_of(zoo)
    assert isinstance(host, EagerHost)
    with host.graph_walk(batches, "dense", UNBOUNDED) as walk:
        states = [walk.begin(batch) for batch in batches]
        for site in host.found().sites:
            found = []
            for number, state in enumerate(states):
                with host.graph_walk((), "dense", UNBOUNDED) as step:
                    step.take_up(state)
                    found += list(step.inputs(site))
                    states[number] = step.put_down(0)
            expected = list(walk.inputs(site))
            assert len(found) == len(expected)
            assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_effects_can_be_asked_for_in_parts() -> None:
    zoo, graph = opened("residual-stack")
    host = graph.host
    assert isinstance(host, EagerHost)
    sites, batches = host.found().sites, batches_of(zoo)
    whole = host.effects(sites, batches, 0.3, torch.Generator().manual_seed(0))
    for place, effect in enumerate(whole):
        part = host.effects_of(sites, batches, 0.3, torch.Generator().manual_seed(0), (place,))
        assert part == [effect if other == place else 0.0 for other in range(len(sites))]
