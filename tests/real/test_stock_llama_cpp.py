"""Stock checkpoints in llama.cpp, through its own converter: small decoders with the tokenizer of a real one, in float32.

llama.cpp chooses experts by probabilities. Where experts are added up these are nearly equal, and two of them may be the same
number: only tokens whose experts are further apart than that can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

import moeify
import to_gguf
from benchmarks.llama_cpp import LlamaCpp, from_pytorch
from benchmarks.router_scale import inputs
from export.stock_models import decoder
from moeify.errors import InputError
from moeify.export.hf.weights import router_weight
from real.conftest import fetched

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("smollm2")]

PROMPTS = ("The Python interpreter reads a program and", "In the year 1848", "def fibonacci(n):", "Water boils at 100 degrees")
#: Scores that are further apart than this are two numbers as probabilities in float32, whoever adds them up.
APART = 2.0**-21


@dataclass(frozen=True)
class Served:
    """A converted decoder in PyTorch and in llama.cpp, and its tokenizer."""

    model: Any
    engine: LlamaCpp
    words: Any
    hf: Path


def served(place: Path, name: str, recipe: str, **options: Any) -> Served:
    fetched("converter", to_gguf)
    words = AutoTokenizer.from_pretrained(fetched("smollm2"))
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    ends = {"vocab_size": len(words), "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    dense: Any = decoder(name, max_position_embeddings=128, **sizes, **ends)
    dense.save_pretrained(place / "dense")
    words.save_pretrained(place / "dense")
    moeify.convert(place / "dense", place / "out", recipe=recipe, export=("torch", "hf"), **options)
    to_gguf.to_gguf(place / "out" / "hf", place / "model.gguf")
    return Served(moeify.load(place / "out"), LlamaCpp(place / "model.gguf"), words, place / "out" / "hf")


@pytest.mark.parametrize(
    ("name", "recipe", "options", "target"),
    [
        ("llama", "drop-upcycle", {"experts": 4, "top_k": 2}, "mixtral"),
        ("qwen3", "drop-upcycle", {"experts": 4, "top_k": 2}, "qwen3_moe"),
        ("granite", "emoe", {"experts": 8, "top_k": 8}, "granitemoe"),
    ],
)
def test_the_greedy_text_is_that_of_the_reloaded_model(
    name: str, recipe: str, options: dict[str, Any], target: str, tmp_path: Path
) -> None:
    found = served(tmp_path, name, recipe, **options)
    assert json.loads((found.hf / "config.json").read_text("utf-8"))["model_type"] == target
    for prompt in PROMPTS:
        ids = found.words(prompt).input_ids
        expected, logs = from_pytorch(found.model, ids, 32)
        said = found.engine.greedy(prompt, 32)
        assert (said.read, said.tokens) == (len(ids), expected)
        assert off(found.engine.greedy([*ids, *expected[:-1]], 1, likely=100).first, logs[-1]) < 2e-3


def test_experts_that_are_added_up_are_the_same_wherever_probabilities_tell_them_apart(tmp_path: Path) -> None:
    """6 of 8 experts of a Llama: 75 % active."""
    found = served(tmp_path, "llama", "emoe", experts=8, top_k=6)
    rows = torch.randint(5, 40_000, (24, 12), generator=torch.Generator().manual_seed(0)).tolist()
    clear = [row for row in rows if nearest(found, row) > APART]
    assert len(clear) >= len(rows) // 2
    for row in clear:
        _, logs = from_pytorch(found.model, row, 1)
        assert off(found.engine.greedy(row, 1, likely=100).first, logs[0]) < 2e-3


def test_what_the_converter_refuses_is_said_with_its_reason(tmp_path: Path) -> None:
    fetched("converter", to_gguf)
    (tmp_path / "config.json").write_text('{"architectures": ["BertOfNobody"], "model_type": "bert"}')
    with pytest.raises(InputError, match=r"llama\.cpp's converter refuses it: .*BertOfNobody"):
        to_gguf.to_gguf(tmp_path, tmp_path / "model.gguf")


def off(likely: dict[int, float], logs: Tensor) -> float:
    """The largest difference of log probabilities. logs: [vocabulary]."""
    return max(abs(value - float(logs[token])) for token, value in likely.items())


def nearest(found: Served, ids: Sequence[int]) -> float:
    """How far the last chosen expert's score is above the next one's, in the stock checkpoint: the least of all choices."""
    made = json.loads((found.hf / "moeify-export.json").read_text("utf-8"))
    scales = {layer["path"]: layer["router_scale"] for layer in made["made_of"]["layers"]}
    least = float("inf")
    for path, read in inputs(found.model, torch.tensor([list(ids)])).items():
        layer = moeify.moe_layers(found.model)[path]
        top_k = layer.config.top_k
        assert top_k is not None
        scores = (scales[path] * (read.double() @ router_weight(layer).double().T)).sort(-1, descending=True).values
        least = min(least, float((scores[:, top_k - 1] - scores[:, top_k]).min()))
    return least
