"""SmolLM2-135M, converted with all experts on, against itself: the work of both is known."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import moeify
from moeify.layers.budget import moe_layers
from real.conftest import Converted

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("smollm2")]


def test_bench_of_smollm2(smollm2: Converted) -> None:
    report = moeify.bench(smollm2.folder, dense=smollm2.dense, tokens=(1, 16), past=(32,), rounds=3, seconds=10)
    assert report.notes == ()
    assert [str(cell.place) for cell in report.cells] == ["1", "16", "1 after 32"]
    model = AutoModelForCausalLM.from_pretrained(smollm2.dense, dtype=torch.float32)
    weights = sum(p.numel() for p in model.parameters())  # all are read: the table of embeddings is the head
    layers = moe_layers(moeify.load(smollm2.folder)).values()
    routers = sum(layer.config.experts * layer.config.hidden for layer in layers)
    for cell in report.cells:
        dense, converted = cell.forms["dense"], cell.forms["converted"]
        assert dense.bytes == 4 * weights
        assert converted.bytes == 4 * (weights + routers)
        assert converted.work.flops - dense.work.flops == 2 * cell.place.tokens * routers
        assert 0.2 < cell.speedup("converted") < 5
        assert 0 < dense.bandwidth < 2
    for form in report.memory[smollm2.folder.name].values():
        assert form.run > 4 * weights
