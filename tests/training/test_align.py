"""Alignment with the dense model: it comes nearer, routing and budget stay, it ends and goes on as promised."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from converted import converted
from moeify.errors import InputError, UsageError
from moeify.ir.model_graph import Batch
from moeify.layers.budget import moe_layers, set_threshold, set_top_k
from moeify.layers.moe_layer import MoELayer
from moeify.training import frozen_routing
from moeify.training.align import align
from moeify.training.align_data import divide
from moeify.training.alignment import LARGEST_RATE, Aligned, Alignment
from moeify.training.output_distance import DIVERGENCE, ERROR
from zoo import ZOO

STEPS = Alignment(minutes=None, steps=16, learning_rate=0.1, tokens=32)


def texts(rows: int = 40, tokens: int = 16) -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    return [{"input_ids": torch.randint(40, (4, tokens), generator=generator)} for _ in range(rows // 4)]


def pair(top_k: int = 1) -> tuple[nn.Module, nn.Module]:
    """A dense model and its conversion."""
    return ZOO["llama"]().model, converted("llama", top_k)[1].model


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_converted_model_comes_nearer_by_its_experts_and_the_keys_that_its_router_takes_from_them() -> None:
    dense, model = pair()
    before, parent = weights(model), weights(dense)
    done = align(model, dense, texts(), STEPS)
    assert done.after < 0.8 * done.before
    assert (done.steps, done.kind) == (16, DIVERGENCE)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.rsplit(".", 1)[1] for name in changed} == {"up", "gate", "down", "weight"}
    assert {name.split(".")[-2] for name in changed if name.endswith("weight")} == {"router"}
    assert all(torch.equal(value, parent[name]) for name, value in dense.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_held_out_rows_are_never_trained_on() -> None:
    data = divide(texts(), 32)
    assert (len(data.train), len(data.held_out)) == (36, 4)
    held = {tuple(row["input_ids"][0].tolist()) for row in data.held_out if isinstance(row, dict)}
    order = data.order(seed=0)
    for _ in range(40):
        _, batch = next(order)
        assert isinstance(batch, dict)
        assert batch["input_ids"].shape == (2, 16)
        assert not held & set(map(tuple, batch["input_ids"].tolist()))


def test_what_is_no_logits_is_compared_by_its_squared_error() -> None:
    name = "encoder-pre-gelu"
    zoo, model = ZOO[name](), converted(name, 1)[1].model
    assert isinstance(zoo.example, tuple)
    x = torch.randn(40, *zoo.example[0].shape[1:], generator=torch.Generator().manual_seed(5))
    done = align(model, zoo.model, [(x,)], STEPS)
    assert done.kind == ERROR
    assert done.after < done.before


def test_a_threshold_moves_so_that_as_many_experts_run_as_before() -> None:
    dense, model = pair(top_k=3)
    layers = moe_layers(model)
    set_threshold(model, 0.0)
    seen: list[torch.Tensor] = []
    for layer in layers.values():
        layer.register_forward_pre_hook(lambda module, x: seen.append(module.route(x[0]).chosen.float().mean()))

    def used() -> float:
        seen.clear()
        with torch.no_grad():
            for batch in texts():
                assert isinstance(batch, dict)
                model(**batch)
        return float(torch.stack(seen).mean())

    before = used()
    assert 0.2 < before < 0.8
    align(model, dense, texts(), Alignment(minutes=None, steps=16, learning_rate=1.0, tokens=32))
    assert any(layer.threshold != 0 for layer in layers.values())
    assert used() == pytest.approx(before, rel=0.03)


def test_a_budget_is_that_of_tokens_which_are_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted("distilbert", 3)[1].model.eval()
    set_threshold(model, 0.0)
    mask = torch.tensor([[1] * 5 + [0] * 7])
    rows: list[Batch] = [{"input_ids": torch.full_like(mask, 3 + i), "attention_mask": mask} for i in range(4)]
    measured: list[int] = []
    used = frozen_routing._used

    def heard(layer: MoELayer, scores: torch.Tensor, threshold: float | None) -> float:
        measured.append(len(scores))
        return used(layer, scores, threshold)

    monkeypatch.setattr(frozen_routing, "_used", heard)
    with frozen_routing.kept_budget(model, moe_layers(model).values(), rows, nullcontext):
        pass
    assert set(measured) == {4 * 5}


def test_the_best_weights_stay_and_a_run_that_gets_worse_ends() -> None:
    dense, model = pair()
    before = weights(model)
    done = align(model, dense, texts(), Alignment(minutes=None, steps=80, learning_rate=2000.0, tokens=32, clip=1e9))
    assert done.steps < 80
    assert (done.best_step, done.after) == (0, done.before)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])  # average keys are computed again


@pytest.mark.parametrize(("kind", "far"), [(DIVERGENCE, 0.7), (ERROR, 0.16)])
def test_the_rate_follows_the_distance(kind: str, far: float) -> None:
    usual = Alignment()
    rates = [usual.rate_from(part * far, kind) for part in (0.1, 0.4, 1.0, 4.0)]
    assert rates == pytest.approx([0.1 * LARGEST_RATE, 0.4 * LARGEST_RATE, LARGEST_RATE, LARGEST_RATE])
    assert Alignment(learning_rate=0.5).rate_from(0.1, kind) == 0.5


def test_a_run_takes_the_rate_of_its_distance() -> None:
    (dense, model), (_, twin) = pair(), pair()
    done = align(model, dense, texts(), Alignment(minutes=None, steps=8, tokens=32))
    rate = Alignment().rate_from(done.before, done.kind)
    align(twin, dense, texts(), Alignment(minutes=None, steps=8, tokens=32, learning_rate=rate))
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())


def test_equal_seeds_give_equal_weights() -> None:
    def aligned(seed: int) -> dict[str, torch.Tensor]:
        dense, model = pair()
        align(model, dense, texts(), Alignment(minutes=None, steps=5, tokens=32, seed=seed))
        return weights(model)

    first, again, other = aligned(0), aligned(0), aligned(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_run_that_was_ended_goes_on_to_the_same_weights(kind: torch.dtype, tmp_path: Path) -> None:
    dense, whole = (each.to(kind) for each in pair())
    whole_run = align(whole, dense, texts(), STEPS)

    class Stop(Exception):
        pass

    def stop(task: str, done: int, total: int | None) -> None:
        if done > 60:
            raise Stop

    dense, broken = (each.to(kind) for each in pair())
    fresh = copy.deepcopy(broken)
    with pytest.raises(Stop):
        align(broken, dense, texts(), STEPS, state=tmp_path / "state", progress=stop)
    resumed: list[int] = []
    done = align(fresh, dense, texts(), STEPS, state=tmp_path / "state", progress=lambda task, at, of: resumed.append(at))
    assert resumed[0] > 50
    assert done.steps == whole_run.steps
    assert done.after == pytest.approx(whole_run.after, rel=1e-6)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], value)


def test_a_damaged_state_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"nothing of use")
    dense, model = pair()
    assert align(model, dense, texts(), STEPS, state=tmp_path / "state").steps == 16


def test_minutes_end_a_run() -> None:
    dense, model = pair()
    done = align(model, dense, texts(), Alignment(minutes=0.02, tokens=32))
    assert 1.2 <= done.seconds < 6
    assert isinstance(done, Aligned)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"minutes": None}, "an alignment needs an end: give minutes, such as 10, or steps"),
        ({"minutes": 0}, "align.minutes is 0: choose a number above 0"),
        ({"learning_rate": float("nan")}, "align.learning_rate is nan: choose a number above 0"),
        ({"steps": 0}, "align.steps is 0: choose 1 or more"),
    ],
)
def test_options_out_of_range(options: dict[str, float], reason: str) -> None:
    with pytest.raises(UsageError, match=f"^{reason}$"):
        Alignment(**options)  # type: ignore[arg-type]  # some are wrong on purpose


def test_a_dense_model_and_data_of_one_row_are_refused() -> None:
    dense, model = pair()
    with pytest.raises(UsageError, match="LlamaForCausalLM has no MoE layer to align: convert it first"):
        align(dense, dense, texts())
    with pytest.raises(InputError, match="the data hold 1 rows; give at least two"):
        align(model, dense, [{"input_ids": torch.ones(1, 4, dtype=torch.int64)}])
    set_top_k(model, 1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_products_of_either_precision_bring_it_nearer(precision: Any) -> None:
    dense, model = pair()
    done = align(model, dense, texts(), replace(STEPS, precision=precision))
    assert done.after < 0.8 * done.before
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_refuses_another_precision() -> None:
    with pytest.raises(UsageError, match=r"align\.precision is 'half': choose one of auto, float32, bfloat16"):
        Alignment(precision="half")  # type: ignore[arg-type]  # wrong on purpose


def test_options_come_of_a_text() -> None:
    assert Alignment.parse("minutes=2.5, precision=float32") == Alignment(minutes=2.5, precision="float32")
    assert Alignment.parse("steps=40,tokens=8") == Alignment(minutes=None, steps=40, tokens=8)
    for wrong in ("soon", "minutes=", "steps=1.5", "speed=2"):
        with pytest.raises(UsageError, match="write minutes=10, or options"):
            Alignment.parse(wrong)


def test_a_model_in_bf16_learns_as_one_in_float32_does() -> None:
    """At the usual rate most steps are below half of the distance of two such numbers."""
    gains = []
    for kind in (torch.float32, torch.bfloat16):
        dense, model = (each.to(kind) for each in pair())
        done = align(
            model, dense, texts(), Alignment(minutes=None, steps=30, learning_rate=1.6e-3, tokens=32, precision="float32")
        )
        gains.append(done.before - done.after)
        assert {p.dtype for p in model.parameters()} == {kind}
    assert gains[1] == pytest.approx(gains[0], rel=0.15)
