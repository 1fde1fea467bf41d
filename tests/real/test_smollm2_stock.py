"""SmolLM2-135M as 4 of 16 experts: a stock checkpoint, in several files, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import moeify
from moeify import api
from real.conftest import fetched

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("smollm2")]


def test_there_and_back(tmp_path: Path) -> None:
    moeify.convert(fetched("smollm2"), tmp_path / "out", recipe="emoe", experts=16, top_k=4)
    report = api.export_hf(tmp_path / "out", tmp_path / "stock", max_shard_size="100MB")
    assert report.model_type == "granitemoe"
    assert report.agreement.alike == 1.0
    assert report.agreement.distance is not None
    assert report.agreement.distance < 1e-3
    assert len(list((tmp_path / "stock").glob("model-*.safetensors"))) == 6
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock").eval()
    found = api.import_hf(tmp_path / "stock", tmp_path / "back")
    assert found.remembered
    before, after = moeify.load(tmp_path / "out"), moeify.load(tmp_path / "back")
    ids = AutoTokenizer.from_pretrained(tmp_path / "stock")("The Python interpreter", return_tensors="pt").input_ids
    with torch.no_grad():
        want, have, theirs = (model(ids).logits for model in (before, after, stock))
    assert float((want - have).abs().max() / want.abs().max()) < 1e-6
    assert float((want - theirs).abs().max() / want.abs().max()) < 1e-3
