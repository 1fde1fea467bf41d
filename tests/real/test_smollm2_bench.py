"""The first layers of SmolLM2-135M, converted, against themselves: the work of both is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import moeify
import real_models
from moeify.layers.budget import moe_layers
from moeify.speed.workload import Place

pytestmark = pytest.mark.slow


def test_bench_of_smollm2(tmp_path: Path, technical_text: Path) -> None:
    source = real_models.smollm2()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, num_hidden_layers=3)
    model.save_pretrained(tmp_path / "dense")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "dense")
    moeify.convert(tmp_path / "dense", tmp_path / "moe", experts=16, top_k=4)
    report = moeify.bench(tmp_path / "moe", tokens=(1, 64), past=(32,), data=technical_text, rounds=5, seconds=10)
    weights = sum(p.numel() for p in model.parameters())  # all are read: the table of embeddings is the head
    layers = moe_layers(moeify.load(tmp_path / "moe")).values()
    dense_ffns = sum(3 * layer.config.hidden * layer.config.dense_neurons for layer in layers)
    active = sum(layer.config.active_fraction(layer.config.dense_neurons) for layer in layers) / len(layers)
    assert report.notes == ()
    one, many, step = report.cells
    assert [cell.place for cell in report.cells] == [Place(1), Place(64), Place(1, 32)]
    for cell in (one, step):
        assert cell.forms["dense"].bytes == 4 * weights
        assert cell.forms["converted"].bytes == 4 * (weights - dense_ffns + round(active * dense_ffns))
    assert one.forms["converted"].bytes < many.forms["converted"].bytes <= 1.01 * many.forms["dense"].bytes
    for cell in report.cells:
        assert 0.2 < cell.speedup("converted") < 5
        assert 0 < cell.forms["dense"].bandwidth < 2
    assert all(form.run > 4 * (weights - dense_ffns) for form in report.memory["moe"].values())
