"""Every recipe that takes an ONNX file gives a folder that opens again, and computes what the conversion gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import moeify
from moeify.api.onnx_source import check_onnx_passes
from moeify.api.planning import registry
from moeify.errors import UsageError
from moeify.layers.inference import set_inference
from moeify.pipeline.pipeline import flatten
from moeify.pipeline.recipe import Recipe, presets
from onnx_files import HIDDEN, dense_onnx


def takes_onnx(recipe: Recipe) -> bool:
    try:
        check_onnx_passes(flatten(recipe.build(registry()).passes), "fp32", "cpu")
    except UsageError:
        return False
    return True


def options(name: str) -> dict[str, Any]:
    if name in ("static", "flap", "thor"):
        return {}
    return {"experts": 4, "active": 0.9} if name == "best" else {"experts": 4, "top_k": 2}


#: The rest takes seconds each.
FAST = ("emoe", "static", "flap", "thor")
NAMES = [recipe.name for recipe in presets().values() if takes_onnx(recipe)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in NAMES])
def test_the_folder_opens_again(name: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    batches = [{"x": torch.randn(8, 16, HIDDEN, generator=generator)} for _ in range(2)]
    dense = dense_onnx(tmp_path / "dense.onnx")
    done = moeify.convert(dense, tmp_path / "out", recipe=name, calibrate=batches, **options(name))
    opened = moeify.load(tmp_path / "out")
    if name == "thor":  # chance chooses
        for model in (done.model, opened):
            set_inference(model, "merged")
    torch.testing.assert_close(opened(**batches[0])["out"], done.model(**batches[0])["out"], rtol=1e-5, atol=1e-5)
    if name == "static":  # without a router there is nothing beside the graph
        assert moeify.evaluate(tmp_path / "out", batches, dense=dense).scores
        assert moeify.report(tmp_path / "out", data=batches).output.is_file()
