"""SmolLM2-135M writes text that reads like its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import moeify
from real.conftest import fetched

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("smollm2")]


@torch.no_grad()
def loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Of each token but the first of ids [1, tokens], in nats, [tokens - 1]."""
    return nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")


def test_it_expects_what_it_wrote_and_not_the_same_words_in_another_order(tmp_path: Path) -> None:
    """A loop of a few words would have hardly any loss, noise that of the shuffled words: 1.9 and 7.4 were measured."""
    folder = fetched("smollm2")
    written = moeify.write_text(folder, tmp_path / "own.jsonl", tokens=1024, window=128)
    assert 1024 <= written.tokens < 1024 + 64
    texts = [json.loads(line)["text"] for line in (tmp_path / "own.jsonl").read_text("utf-8").splitlines()]
    assert len(texts) == written.rows
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [ids for text in texts if (ids := torch.tensor([tokenizer(text).input_ids])).shape[1] > 1]
    assert sum(ids.shape[1] for ids in rows) > 0.9 * written.tokens
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    shuffled = [ids[:, torch.randperm(ids.shape[1], generator=generator)] for ids in rows]
    own, noise = (float(torch.cat([loss(model, ids) for ids in found]).mean()) for found in (rows, shuffled))
    assert 1 < own < 4 < noise - 2
