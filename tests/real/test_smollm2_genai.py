"""SmolLM2-135M, converted by its weights alone, in onnxruntime-genai: the greedy text of the reloaded model in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai
import pytest
import torch
from transformers import AutoTokenizer

import moeify
from moeify import api
from real.conftest import fetched

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("smollm2")]

PROMPTS = ("The Python interpreter reads a program and", "In the year 1848")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("serving") / "out"
    moeify.convert(fetched("smollm2"), place, recipe="emoe", experts=16, top_k=4)
    return place


@pytest.mark.parametrize("lowering", ["auto", "native"])
def test_greedy_text_is_that_of_the_reloaded_model(lowering: str, folder: Path, tmp_path: Path) -> None:
    report = api.export_genai(folder, tmp_path / "genai", lowering=lowering)
    assert report.tokens == 16
    eager: Any = moeify.load(folder)
    words = AutoTokenizer.from_pretrained(folder / "source")
    model = genai.Model(str(tmp_path / "genai"))
    reader = genai.Tokenizer(model)
    for prompt in PROMPTS:
        ids = reader.encode(prompt)
        assert list(ids) == words(prompt).input_ids
        given = torch.tensor(np.array([ids]), dtype=torch.int64)
        settings = {"max_new_tokens": 32, "do_sample": False, "attention_mask": torch.ones_like(given)}
        expected = eager.generate(given, **settings)[0].tolist()
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=len(ids) + 32, do_sample=False)
        generator = genai.Generator(model, params)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        found = [int(token) for token in generator.get_sequence(0)]
        assert found == expected
        assert reader.decode(generator.get_sequence(0)) == words.decode(expected)
