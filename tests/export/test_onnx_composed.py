"""Experts on a frozen core in ONNX Runtime: the file holds plain rows, the model keeps its core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import moeify
from converted import call, main_output
from layers.composed_layers import HIDDEN, NEURONS, RULES, composed_layer, frozen_names
from moeify.export.onnx.exporting import export_onnx
from moeify.ir.composition import Composition
from moeify.layers.budget import moe_layers
from moeify.runtime.session import session
from zoo import ZOO


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_file_holds_the_folded_layer(rule: Composition, tmp_path: Path) -> None:
    layer = composed_layer(
        rule, top_k=2, shared=True, gated=True, up_bias=True, output_bias=True, gate_rule="softmax", dtype=torch.float32
    )  # fmt: skip
    model, x = nn.Sequential(layer), torch.randn(2, 7, HIDDEN, generator=torch.Generator().manual_seed(0))
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    report = export_onnx(model, (x,), tmp_path / "m.onnx")
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert frozen_names(layer) == {"core.up", "core.gate", "core.down", "core.up_bias", "output_bias"}
    assert {check.name for check in report.checks} >= {"the example", "all experts on, the example"}
    shapes = {tensor.name: list(tensor.dims) for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert shapes["0.up"] == shapes["0.gate"] == [5 * NEURONS, HIDDEN]
    assert not any("core" in name or rule.kind in name for name in shapes)
    runtime = session(tmp_path / "m.onnx", threads=1)
    (y,) = runtime.run(None, {runtime.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        want = model(x).numpy()
    np.testing.assert_allclose(y, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.slow
def test_a_layer_that_stands_in_for_bare_parameters_is_folded_too(tmp_path: Path) -> None:
    zoo = ZOO["bare-block"]()
    by: Any = {"kind": "lora", "rank": 2}
    done = moeify.convert(
        zoo.model, example=zoo.example, recipe="lora-experts", experts=3, settings={"upcycle-experts.by": by}
    )  # fmt: skip
    with torch.no_grad():
        for layer in moe_layers(done.model).values():
            layer.get_parameter("lora.down_b").normal_(generator=torch.Generator().manual_seed(1))
    assert export_onnx(done.model, zoo.example, tmp_path / "m.onnx").moe_layers
    assert main_output(call(done.model, zoo.example)).isfinite().all()
