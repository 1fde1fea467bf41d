"""SmolLM2-135M with all experts on is the dense model: logits, greedy text, ONNX, reloaded folder."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import moeify
from converted import distance
from moeify.layers.budget import moe_layers, set_top_k
from moeify.runtime.decoder import Decoder
from moeify.runtime.session import session
from real.conftest import Converted

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("smollm2")]

PROMPT = "The Python interpreter reads a program and"


@pytest.fixture(scope="module")
def dense(smollm2: Converted) -> Any:
    return AutoModelForCausalLM.from_pretrained(smollm2.dense, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ids(smollm2: Converted, technical_text: Path) -> Tensor:
    """Real text, [3, 96]."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2.dense)
    text = technical_text.read_text("utf-8")[20_000:24_000]
    return torch.tensor(tokenizer(text).input_ids[: 3 * 96]).reshape(3, 96)


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    found: Tensor = model(input_ids=ids).logits
    return found


def permuted(dense: Any) -> nn.Module:
    """The same function with the neurons of every FFN in another order: what reordering sums alone costs."""
    twin: nn.Module = copy.deepcopy(dense)
    generator = torch.Generator().manual_seed(0)
    for block in twin.get_submodule("model.layers").children():
        order = torch.randperm(1536, generator=generator)
        for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            weight = block.get_parameter(f"mlp.{name}.weight").data
            weight.copy_(weight.index_select(dim, order))
    return twin


def test_logits_equal_the_dense_ones(smollm2: Converted, dense: Any, ids: Tensor) -> None:
    expected = logits(dense, ids)
    found = distance(logits(smollm2.done.model, ids), expected)
    reordered = distance(logits(permuted(dense), ids), expected)
    assert found <= 3e-5
    assert found <= 4 * reordered


def test_greedy_text_is_the_same(smollm2: Converted, dense: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2.dense)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    settings = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False}
    expected = dense.generate(**prompt, **settings)
    found = smollm2.done.model.generate(**prompt, **settings)  # type: ignore[operator]  # a transformers model
    assert torch.equal(found, expected)
    end = prompt.input_ids.shape[1]
    decoder = Decoder(session(smollm2.folder / "model.onnx"))
    assert np.array_equal(decoder.generate(prompt.input_ids.numpy(), 64), expected[:, end:].numpy())


@pytest.mark.parametrize("rows", [1, 3])
def test_onnx_prefill_and_decode(smollm2: Converted, ids: Tensor, rows: int) -> None:
    expected = logits(smollm2.done.model, ids[:rows])
    decoder = Decoder(session(smollm2.folder / "model.onnx"))
    steps = [decoder.step(part.numpy()) for part in torch.split(ids[:rows], [80, 1, 1, 1, 13], dim=1)]
    assert distance(torch.from_numpy(np.concatenate(steps, axis=1)), expected) <= 3e-5


def test_the_folder_gives_the_same_model(smollm2: Converted, ids: Tensor) -> None:
    again = moeify.load(smollm2.folder)
    assert torch.equal(logits(again, ids[:1]), logits(smollm2.done.model, ids[:1]))


def test_the_budget_changes_without_converting_again(smollm2: Converted, dense: Any, ids: Tensor) -> None:
    model = smollm2.done.model
    expected = logits(dense, ids)
    distances = []
    for k in (4, 8, 12, 16):
        set_top_k(model, k)
        distances.append(float((logits(model, ids) - expected).norm()))
    assert distances == sorted(distances, reverse=True)
    assert {layer.top_k for layer in moe_layers(model).values()} == {16}


def test_converting_takes_little_time_and_memory(smollm2: Converted, technical_text: Path, tmp_path: Path) -> None:
    """find, calibrate on 8k tokens, 16 experts: under 2 minutes, and 3 times the weights above the process after imports."""
    script = Path(__file__).parent / "measure_conversion.py"
    arguments = [str(smollm2.dense), str(tmp_path / "out"), "--text", str(technical_text)]
    run = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    weights = (smollm2.dense / "model.safetensors").stat().st_size
    assert found["tokens"] == 8192
    assert found["seconds"] < 120
    assert found["bytes"] < 3 * weights
