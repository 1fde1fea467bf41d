"""Files of models that make small differences large while all of their experts are on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moeify.errors import ConversionError
from moeify.export.onnx import verify
from moeify.export.onnx.exporting import export_onnx
from moeify.export.onnx.interface import flat_interface
from moeify.export.onnx.sensitivity import NOISE, excused
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.moe_layer import MoELayer
from onnx_blocks import normal

HIDDEN, EXPERTS, DEPTH = 16, 16, 10


class Chaotic(nn.Module):
    """Blocks whose layers give EXPERTS times as much with all experts on as with one, in front of a sine that folds it."""

    def __init__(self) -> None:
        super().__init__()
        offsets = tuple(range(0, 4 * EXPERTS + 1, 4))
        config = MoEConfig(HIDDEN, HIDDEN, "gelu", False, offsets, RouterConfig("linear"), top_k=1)
        self.layers = nn.ModuleList(MoELayer(config) for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(x + layer(x))
        return x


def chaotic() -> Chaotic:
    model = Chaotic()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed) * 0.4)
    return model.eval()


X = normal(4, HIDDEN, seed=5)


def test_noise_moves_a_model_as_far_as_it_is_sensitive() -> None:
    model = chaotic()
    with torch.no_grad():
        expected = [model(X).numpy()]
        calm = excused(model, lambda: [model(X).numpy()], expected, "float32")
        with verify.all_experts_on(model):
            expected = [model(X).numpy()]
            wild = excused(model, lambda: [model(X).numpy()], expected, "float32")
        assert 3 * NOISE["float32"] < calm < 1e-4
        assert wild > 1e-3
        assert [model(X).numpy().tolist()] != [expected[0].tolist()]  # back to one expert,
        assert torch.equal(model(X), model(X))  # and without noise


@pytest.mark.slow
def test_such_a_model_is_exported_and_its_bound_is_said(tmp_path: Path) -> None:
    report = export_onnx(chaotic(), (X,), tmp_path / "m.onnx", precision="fp32")
    wide = [check for check in report.checks if check.bound > 1e-3]
    assert wide
    assert all(check.name.startswith("all experts on, ") for check in wide)
    assert all(check.bound <= 1e-4 for check in report.checks if not check.name.startswith("all experts on, "))


def test_another_function_is_still_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file is compared with is that of a model whose last layer has other weights."""
    model, other = chaotic(), chaotic()
    with torch.no_grad():
        other.get_parameter(f"layers.{DEPTH - 1}.up").mul_(1.05)
    held = flat_interface(other, (X,))
    monkeypatch.setattr("moeify.export.onnx.exporting.model_interface", lambda *_: flat_interface(model, (X,)))
    real = verify.verify

    def against_another(path: Path, _: nn.Module, __: object, *rest: object) -> object:
        return real(path, other, held, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("moeify.export.onnx.exporting.verify", against_another)
    with pytest.raises(ConversionError, match="of the largest value away from the model"):
        export_onnx(model, (X,), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
