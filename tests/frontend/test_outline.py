"""Inspecting and planning without weights: the same sites, whatever the size of the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import moeify
import zoo_huggingface
from cli.command_line import environment
from moeify import api
from moeify.api.models import open_model, open_outline
from moeify.frontend import load_huggingface
from moeify.ir.model_graph import ModelGraph
from moeify.ir.text import refusal_text, site_text
from zoo import ZOO

FAST = ("bert", "gpt2", "llama", "phi3", "t5", "vit")

#: Its convolutional position embedding is computed from weights as it is built.
NEEDS_VALUES = ("wav2vec2",)

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in zoo_huggingface.ARCHITECTURES if name not in FAST]


def saved(name: str, folder: Path) -> Path:
    model: Any = ZOO[name]().model
    model.save_pretrained(folder / name)
    return folder / name


def text(graph: ModelGraph) -> list[str]:
    sites, refusals = graph.host.find()
    return [*map(site_text, sites), *map(refusal_text, refusals)]


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_the_same_sites_are_found_without_weights(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    outline = open_outline(folder)
    values = [parameter for parameter in outline.model.parameters() if not parameter.is_meta]
    assert bool(values) == (name in NEEDS_VALUES)
    assert text(outline) == text(open_model(folder))


@pytest.mark.slow
def test_a_plan_is_the_same_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved("llama", tmp_path)
    options: dict[str, Any] = {"experts": 4, "top_k": 2}
    done = moeify.convert(folder, **options).report

    def weights(*args: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(load_huggingface, "_load", weights)
    planned = api.plan(folder, **options)
    assert [(row.path, row.parameters_after, row.active_fraction) for row in planned.layers] == [
        (row.path, row.parameters_after, row.active_fraction) for row in done.layers
    ]
    assert [row["path"] for row in api.inspect(folder).rows] == [row.path for row in planned.layers]


def write_sparse_llama(folder: Path) -> int:
    """A Llama of the 7B shape whose weights are one hole in a file; returns the number of its parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(architectures=["LlamaForCausalLM"])  # its defaults are those of the first 7B model
    with torch.device("meta"):
        shapes = {name: list(p.shape) for name, p in LlamaForCausalLM(config).named_parameters()}
    config.save_pretrained(folder)
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)
    return end // 2


_PEAK = """
import sys, torch, torch.export, transformers, accelerate, moeify.api, moeify_passes
from real.measure_conversion import peak
before = peak()
planned = moeify.api.plan(sys.argv[1], experts=16, top_k=4, dtype="bf16")
print(peak() - before, planned.parameters_before, len(planned.layers))
"""


@pytest.mark.slow
def test_a_7b_model_is_planned_in_little_memory(tmp_path: Path) -> None:
    parameters = write_sparse_llama(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path)], env=environment(), capture_output=True, text=True, check=True
    )
    above, counted, layers = map(int, run.stdout.split())
    assert (counted, layers) == (parameters, 32)
    assert above < 2**30, f"{above / 2**20:.0f} MiB for a plan of {2 * parameters / 2**30:.0f} GiB of weights"
