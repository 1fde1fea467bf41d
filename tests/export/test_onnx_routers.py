"""Every router in ONNX Runtime: the scores and the choice are the eager layer's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moeify.export.onnx.exporting import export_onnx
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.moe_layer import MoELayer
from moeify.runtime.session import session
from onnx_blocks import HIDDEN, normal

ROUTERS = {
    "mlp, unit input, relative": RouterConfig("mlp", width=3, activation="tanh", unit_input=True, output="relative"),
    "neuron, gated, abs": RouterConfig("neuron", activation="silu", gated=True, output="abs"),
    "spectral, gated": RouterConfig("spectral", width=3, gated=True),
}


class Routed(nn.Module):
    def __init__(self, layer: MoELayer) -> None:
        super().__init__()
        self.moe = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.moe.router is not None
        return self.moe(x), self.moe.router(x)


@pytest.mark.sampled
@pytest.mark.parametrize("caption", ROUTERS)
def test_onnx_runtime_scores_as_the_eager_router(caption: str, tmp_path: Path) -> None:
    relative = ROUTERS[caption].output == "relative"
    plain = MoEConfig(HIDDEN, HIDDEN, "gelu", True, (3, 5, 8, 12, 17), ROUTERS[caption])
    layer = MoELayer(replace(plain, threshold=0.6) if relative else replace(plain, top_k=2))
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed))
    model = Routed(layer).eval()
    export_onnx(model, {"x": normal(2, 5, HIDDEN, seed=50)}, tmp_path / "m.onnx")
    runtime = session(tmp_path / "m.onnx", threads=1)
    for shape in ((2, 5), (1, 1), (3, 17)):
        x = normal(*shape, HIDDEN, seed=60)
        with torch.no_grad():
            wanted, scores = model(x)
        y, found = runtime.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(found, scores.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(y, wanted.numpy(), atol=3e-5 * float(wanted.abs().max()))
