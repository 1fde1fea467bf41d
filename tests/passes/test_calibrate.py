from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moeify.errors import ConversionError, UsageError
from moeify.ir.facts import ActivationSample, CalibrationData, NeuronStatistics, OutputGoals
from moeify.ir.feed_forward import FeedForward
from moeify.pipeline.context import PassContext
from moeify_passes.analyse.calibrate import Calibrate
from moeify_passes.analyse.reservoir import Reservoir
from moeify_passes.held_site import held_site
from passes.tiny import HIDDEN, NEURONS, SITES, correlated_inputs, data_context, graph_of, random_site


@pytest.mark.parametrize("caption", SITES)
def test_moments_are_those_of_all_tokens(caption: str) -> None:
    site, inputs = SITES[caption](), correlated_inputs(500)
    context = data_context(inputs, NeuronStatistics, batch=130)
    Calibrate(tokens=400, memory=50 * 4 * NEURONS).run(graph_of(site), context)
    fact, h = context.get(site, NeuronStatistics), site.neuron_outputs(inputs[:400].double())
    assert fact.tokens == 400
    torch.testing.assert_close(fact.mean.double(), h.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fact.second_moment.double(), h.square().mean(0), rtol=1e-4, atol=1e-5)
    assert context.find(site, ActivationSample) is None


def test_a_sample_with_room_is_all_there_was_in_order() -> None:
    site, inputs = random_site(), correlated_inputs(500)
    context = data_context(inputs, ActivationSample, batch=70)
    Calibrate(tokens=300).run(graph_of(site), context)
    sample = context.get(site, ActivationSample)
    assert sample.seen == 300
    assert torch.equal(sample.inputs, inputs[:300])
    assert context.find(site, NeuronStatistics) is None


def test_memory_bounds_the_sample() -> None:
    site, inputs = random_site(), correlated_inputs(500).bfloat16()
    context = data_context(inputs, ActivationSample)
    Calibrate(memory=64 * 4 * HIDDEN).run(graph_of(site), context)
    sample = context.get(site, ActivationSample)
    assert sample.seen == 500
    assert sample.inputs.shape == (64, HIDDEN)
    assert sample.inputs.dtype == torch.float32
    rows = {tuple(row) for row in inputs.float().tolist()}
    assert all(tuple(row) in rows for row in sample.inputs.tolist())


@pytest.mark.parametrize("room", [64, 1000])
def test_tokens_of_the_sample_know_their_source_through_every_call(room: int) -> None:
    site, sources = replace(random_site(), calls=2), [2, 0, 1]
    inputs = torch.cat([correlated_inputs(80) + 100 * source for source in sources])
    context = data_context(inputs, ActivationSample, batch=40)
    context.put(None, CalibrationData(sources))
    Calibrate(tokens=230, memory=room * 4 * HIDDEN).run(graph_of(site), context)
    sample = context.get(site, ActivationSample)
    assert sample.sources is not None
    assert len(sample.sources) == len(sample.inputs) == min(room, 230)
    assert torch.equal(sample.sources, (sample.inputs.mean(1) / 100).round().long())


@pytest.mark.parametrize("room", [64, 1000])
def test_goals_are_those_of_the_tokens_of_the_sample(room: int) -> None:
    site, inputs = random_site(), correlated_inputs(500)
    context = data_context(inputs, OutputGoals, batch=70)
    context.goals = lambda _: iter(torch.split(site.forward(inputs), 70))
    Calibrate(tokens=300, memory=room * 4 * (site.hidden + site.output)).run(graph_of(site), context)
    sample, goals = context.get(site, ActivationSample).inputs, context.get(site, OutputGoals).goals
    assert len(sample) == len(goals) == min(room, 300)
    torch.testing.assert_close(goals, site.forward(sample))


def test_no_matrix_of_neurons_is_larger_than_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    honest = FeedForward.neuron_outputs

    def watched(self: FeedForward, x: Tensor, neurons: Tensor | None = None) -> Tensor:
        h = honest(self, x, neurons)
        sizes.append(4 * h.numel() * h.element_size())
        return h

    monkeypatch.setattr(FeedForward, "neuron_outputs", watched)
    memory = 4 * 4 * NEURONS * 20
    Calibrate(memory=memory).run(graph_of(random_site()), data_context(correlated_inputs(500), NeuronStatistics, batch=500))
    assert len(sizes) == 25
    assert max(sizes) <= memory


@given(st.integers(1, 12), st.integers(0, 40), st.integers(1, 9), st.integers(0, 5))
def test_a_reservoir_keeps_rows_that_came_each_once(capacity: int, rows: int, batch: int, seed: int) -> None:
    reservoir = Reservoir(capacity, torch.Generator().manual_seed(seed))
    for part in torch.split(torch.arange(rows, dtype=torch.float32)[:, None], batch):
        reservoir.add(part)
    kept = reservoir.rows().flatten().tolist()
    assert len(set(kept)) == len(kept) == min(capacity, rows)
    assert set(kept) <= set(range(rows))
    assert reservoir.seen == rows


@settings(deadline=None)
@given(st.sampled_from([1, 3, 7, 30]))
def test_a_reservoir_is_uniform(batch: int) -> None:
    counts = torch.zeros(30)
    for seed in range(600):
        reservoir = Reservoir(6, torch.Generator().manual_seed(seed))
        for part in torch.split(torch.arange(30.0)[:, None], batch):
            reservoir.add(part)
        counts[reservoir.rows().flatten().long()] += 1
    # 600 draws of 6 in 30: mean 120, standard deviation 9.8; five of them apart would be no chance.
    assert bool(((counts - 120).abs() < 49).all())


def test_nothing_is_read_when_nothing_is_wanted() -> None:
    context = PassContext()
    Calibrate().run(graph_of(random_site()), context)
    assert context.measurements == {}


def test_shows_progress() -> None:
    seen: list[tuple[str, int, int | None]] = []
    context = data_context(correlated_inputs(250), ActivationSample)
    context.progress = lambda *event: seen.append(event)
    Calibrate(tokens=220).run(graph_of(random_site("a.b")), context)
    assert seen == [("calibrate a.b", 100, 220), ("calibrate a.b", 200, 220), ("calibrate a.b", 220, 220)]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.empty(0, HIDDEN), "a.b: no calibration token reached this layer; check the calibration data"),
        (torch.full((3, HIDDEN), torch.nan), "a.b: an input on the calibration data is not finite; check the model's weights"),
    ],
    ids=["no tokens", "not finite"],
)
def test_refuses_inputs(inputs: Tensor, message: str) -> None:
    with pytest.raises(ConversionError) as error:
        Calibrate().run(graph_of(random_site("a.b")), data_context(inputs, ActivationSample))
    assert str(error.value) == message


def test_refuses_to_run_outside_the_walk() -> None:
    with pytest.raises(ConversionError, match=r"a\.b: calibrate runs inside each-layer"):
        Calibrate().run(graph_of(random_site("a.b")), PassContext(wanted=frozenset({ActivationSample})))


def test_refuses_options() -> None:
    with pytest.raises(UsageError, match=r"calibrate\.tokens is 0: choose 1 or more"):
        Calibrate(tokens=0)
    with pytest.raises(UsageError, match=r"calibrate\.memory is 'much': give a positive number of bytes"):
        Calibrate(memory="much")


def counted(load: Callable[[str], Tensor], reads: list[str]) -> Callable[[str], Tensor]:
    def counting(name: str) -> Tensor:
        reads.append(name)
        return load(name)

    return counting


def test_a_held_site_reads_its_host_once() -> None:
    reads: list[str] = []
    site = random_site(gated=True, biases=True)
    for weight in (site.up, site.gate, site.down):
        assert weight is not None
        object.__setattr__(weight, "load", counted(weight.load, reads))
    held = held_site(site)
    x = correlated_inputs(20)
    assert torch.equal(held.forward(x), held.forward(x))
    assert sorted(reads) == sorted(f"layers.0.mlp.{name}" for name in ("up", "gate", "down"))
    assert torch.equal(held.forward(x), site.forward(x))
