"""Converted, fine-tuned with all that training offers, saved, reloaded, exported: at each step the same outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import moeify
from converted import call, distance, opened
from moeify.export.onnx.exporting import export_onnx
from moeify.ir.model_graph import Batch
from moeify.layers.budget import moe_layers
from moeify.runtime.session import session
from moeify.training.parameter_groups import parameter_groups
from moeify.training.selection_bias import update_after_steps
from moeify.training.settings import auxiliary_loss, set_training
from moeify_passes import (
    ClusterNeurons,
    FindFeedForward,
    InsertRouter,
    MatchDense,
    Random,
    RandomRouter,
    SplitExperts,
    UpcycleExperts,
)
from zoo import ZOO, values

NAME = "residual-stack"
WAYS = {
    "carved": (ClusterNeurons(experts=3, by=Random()), SplitExperts(), MatchDense(), InsertRouter(top_k=2)),
    "upcycled": (
        UpcycleExperts(copies=4), InsertRouter(gate="softmax", normalize=True, detach_sum=True, by=RandomRouter()),
        MatchDense(),
    ),
}  # fmt: skip


def skeleton() -> nn.Module:
    return ZOO[NAME]().model


def outputs(model: nn.Module, example: Batch) -> Tensor:
    y: Tensor = call(model.eval(), example).detach()
    return y


def exported(model: nn.Module, example: Batch, path: Path) -> Tensor:
    """What stock ONNX Runtime gives."""
    assert isinstance(example, tuple)
    export_onnx(model, example, path)
    runtime = session(path, threads=1, native=False)
    (y,) = runtime.run(None, {runtime.get_inputs()[0].name: example[0].numpy()})
    return torch.from_numpy(np.asarray(y))


def fine_tune(model: nn.Module, example: Batch) -> list[float]:
    assert isinstance(example, tuple)
    x = values(64, *example[0].shape[1:], seed=3)
    target = values(*model(x).shape, seed=9)
    set_training(
        model.train(), load_balance=0.01, z_loss=0.001, sparsity=1e-4, bias_rate=0.01, jitter=0.01, capacity_factor=1.5
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, router={"weight_decay": 0.0}), lr=3e-3)
    update_after_steps(model, optimizer)
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(8):
            loss = (model(x) - target).square().mean() + auxiliary_loss(model)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("way", ["carved", pytest.param("upcycled", marks=pytest.mark.slow)])
def test_at_each_step_the_outputs_are_the_same(way: str, tmp_path: Path) -> None:
    zoo, graph = opened(NAME)
    report = moeify.Pipeline((FindFeedForward(), moeify.EachLayer(WAYS[way]))).run(graph)
    converted = outputs(graph.model, zoo.example)
    if way == "upcycled":
        assert distance(converted, zoo.run()) < 1e-5
    assert distance(exported(graph.model, zoo.example, tmp_path / "converted.onnx"), converted) < 1e-5

    losses = fine_tune(graph.model, zoo.example)
    tuned = outputs(graph.model, zoo.example)
    assert losses[-1] < losses[0]
    assert distance(tuned, converted) > 1e-2

    moeify.save(graph, tmp_path / "tuned", report=report)
    reloaded = moeify.load(tmp_path / "tuned", factory=skeleton)
    assert torch.equal(outputs(reloaded, zoo.example), tuned)
    assert all(layer.selection_bias is not None and layer.selection_bias.any() for layer in moe_layers(reloaded).values())
    assert distance(exported(graph.model, zoo.example, tmp_path / "tuned.onnx"), outputs(reloaded, zoo.example)) < 1e-5
    again = fine_tune(reloaded, zoo.example)
    assert again[-1] < losses[-1]
