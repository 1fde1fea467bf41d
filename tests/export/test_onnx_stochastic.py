"""Stochastic layers in ONNX Runtime: the hash chooses what the model chooses, seeded draws are uniform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

import moeify
from converted import distance, main_output
from layers.stochastic_layers import HIDDEN, TokenModel, experts_of, inputs, stochastic_layer
from moeify import api
from moeify.export.onnx.exporting import export_onnx
from moeify.layers.model_hooks import watcher_of
from moeify.layers.token_input import TokenInput
from moeify.runtime.session import session
from zoo import ZOO


def ids(batch: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(50, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def seeds(path: Path) -> list[float]:
    """Of the nodes that draw, in order."""
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "RandomUniformLike"]
    return [attribute.f for node in nodes for attribute in node.attribute if attribute.name == "seed"]


@pytest.mark.sampled
@pytest.mark.parametrize("top_k", [1, 2])
def test_fixed_takes_the_very_experts_that_the_model_takes(top_k: int, tmp_path: Path) -> None:
    model = TokenModel(stochastic_layer(5, shared=2, top_k=top_k, inference="fixed")).eval()
    export_onnx(model, {"input_ids": ids(2, 7)}, tmp_path / "m.onnx")
    runtime = session(tmp_path / "m.onnx", threads=1)
    for batch, tokens in ((2, 7), (1, 1), (5, 40)):
        given = ids(batch, tokens, seed=tokens)
        with torch.no_grad():
            want = model(given)
        y, scores = runtime.run(None, {"input_ids": given.numpy()})
        assert np.array_equal(scores, want["scores"].numpy())
        np.testing.assert_allclose(y, want["y"].numpy(), atol=1e-5 * float(want["y"].abs().max()))
    assert seeds(tmp_path / "m.onnx") == []


def test_without_ids_sequence_and_place_decide_alike(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.moe = stochastic_layer(5, inference="fixed")
            self.moe.router.tokens = watcher_of(self, TokenInput)  # type: ignore[union-attr]  # a stochastic one

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.moe(x), self.moe.router(x)  # type: ignore[misc]  # a stochastic one

    model = Plain().eval()
    export_onnx(model, (inputs(2, 7),), tmp_path / "m.onnx")
    x = inputs(4, 11, seed=5)
    runtime = session(tmp_path / "m.onnx", threads=1)
    y, scores = runtime.run(None, {runtime.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        want = model(x)
    assert np.array_equal(scores, want[1].numpy())
    np.testing.assert_allclose(y, want[0].numpy(), atol=1e-5 * float(want[0].abs().max()))


@pytest.mark.sampled
@pytest.mark.parametrize("scope", ["forward", "sequence", "token"])
def test_random_draws_are_uniform_by_scope_and_go_on_from_run_to_run(scope: Any, tmp_path: Path) -> None:
    model = TokenModel(stochastic_layer(4, seed=12345, scope=scope), scores=False).eval()
    report = export_onnx(model, {"input_ids": ids(2, 7)}, tmp_path / "m.onnx")
    assert all(check.name.startswith("all experts on") for check in report.checks)
    assert seeds(tmp_path / "m.onnx") == [12345.0]
    given = ids(*{"forward": (1, 3), "sequence": (20, 3), "token": (8, 10)}[scope])
    with torch.no_grad():
        outputs = torch.stack(experts_of(model.moe, model.embedding(given)))

    def drawn(runs: int) -> NDArray[np.int64]:
        runtime = session(tmp_path / "m.onnx", threads=1)
        y = (torch.from_numpy(runtime.run(["y"], {"input_ids": given.numpy()})[0]) for _ in range(runs))
        return np.stack([(outputs - one).abs().amax(-1).argmin(0).numpy() for one in y])

    found = drawn(400)
    independent = found if scope == "token" else found[..., 0]  # [runs, ...]
    assert stats.chisquare(np.bincount(independent.flatten(), minlength=4)).pvalue > 1e-3
    assert (found == found[..., :1]).all() == (scope != "token")
    assert any((a != b).any() for a, b in zip(found, found[1:]))
    assert np.array_equal(drawn(5), found[:5])


@pytest.mark.slow
def test_every_layer_of_a_model_draws_with_its_own_seed(tmp_path: Path) -> None:
    zoo = ZOO["nanogpt"]()
    settings = {"upcycle-experts.by": {"kind": "noise", "std": 0.5}, "insert-stochastic-experts.scope": "token"}
    done = moeify.convert(zoo.model, tmp_path / "out", example=zoo.example, recipe="thor", settings=settings)
    api.export(tmp_path / "out", tmp_path / "m.onnx", factory=lambda: ZOO["nanogpt"]().model, example=zoo.example)
    layers = moeify.moe_layers(done.model).values()
    own = [layer.config.router.seed for layer in layers if layer.config.router is not None]
    assert len(set(own)) == 2
    assert seeds(tmp_path / "m.onnx") == [float(seed) for seed in own]
    runtime = session(tmp_path / "m.onnx", threads=1)
    assert isinstance(zoo.example, tuple)
    feeds = {runtime.get_inputs()[0].name: zoo.example[0].numpy()}
    first, second = (torch.from_numpy(runtime.run(None, feeds)[0]) for _ in range(2))
    assert distance(first, second) > 1e-3


@pytest.mark.parametrize(
    ("name", "mode"), [("llama", "ensemble"), *(("encoder-pre-gelu", mode) for mode in ("fixed", "merged", "ensemble"))]
)
def test_a_loaded_model_gives_the_same_and_so_does_its_file(name: str, mode: str, tmp_path: Path) -> None:
    zoo = ZOO[name]()
    settings = {"upcycle-experts.by": {"kind": "noise", "std": 0.5}, "insert-stochastic-experts.inference": mode}
    done = moeify.convert(zoo.model, tmp_path / "out", example=zoo.example, recipe="thor", experts=3, settings=settings)
    again = moeify.load(tmp_path / "out", factory=lambda: ZOO[name]().model)
    with torch.no_grad():
        found = again(**zoo.example) if isinstance(zoo.example, dict) else again(*zoo.example)
    assert distance(main_output(found), main_output(zoo.run())) < 1e-6
    report = export_onnx(again, zoo.example, tmp_path / "m.onnx")
    assert max(check.distance for check in report.checks) < 1e-5
    assert all(check.flipped == 0 for check in report.checks)
    assert done.report.active_fraction == pytest.approx(1 if mode == "fixed" else 3)


def test_the_hidden_width_is_free_of_the_choice() -> None:
    layer = stochastic_layer(5, inference="fixed")
    assert torch.equal(layer.route(inputs(3, 4)).chosen, layer.route(torch.zeros(3, 4, HIDDEN)).chosen)
