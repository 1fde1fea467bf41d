"""all-MiniLM-L6-v2 with all experts on gives the dense model's embeddings, in eager and in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

import moeify
from moeify.runtime.session import session
from real.conftest import Converted

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("minilm")]


@pytest.fixture(scope="module")
def batch(minilm: Converted, technical_text: Path) -> Any:
    lines = [line for line in technical_text.read_text("utf-8").splitlines() if len(line) > 60][:24]
    tokenizer = AutoTokenizer.from_pretrained(minilm.dense)
    return tokenizer(lines, padding=True, truncation=True, return_tensors="pt")


def embeddings(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real tokens, normalised: [rows, hidden]."""
    weights = mask[..., None].to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)


@torch.no_grad()
def of_model(model: Any, batch: Any) -> Tensor:
    return embeddings(model(**batch).last_hidden_state, batch["attention_mask"])


def test_embeddings_equal_the_dense_ones(minilm: Converted, batch: Any) -> None:
    expected = of_model(AutoModel.from_pretrained(minilm.dense).eval(), batch)
    assert float((of_model(minilm.done.model, batch) - expected).abs().max()) < 1e-5
    assert float((of_model(moeify.load(minilm.folder), batch) - expected).abs().max()) < 1e-5


def test_onnx_embeddings_equal_the_eager_ones(minilm: Converted, batch: Any) -> None:
    runtime = session(minilm.folder / "model.onnx")
    feeds = {value.name: batch[value.name].numpy() for value in runtime.get_inputs()}
    hidden = torch.from_numpy(np.asarray(runtime.run(["last_hidden_state"], feeds)[0]))
    found = embeddings(hidden, batch["attention_mask"])
    assert float((found - of_model(minilm.done.model, batch)).abs().max()) < 1e-5


def test_transformers_does_not_take_the_folder_for_a_dense_model(minilm: Converted) -> None:
    with pytest.raises((OSError, ValueError)):
        AutoModel.from_pretrained(minilm.folder)
