"""Every block of code in docs/ways-back.md and docs/distillation.md runs, on small models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import moeify
from converted import converted
from data.small_tokenizers import TEXT, byte_level
from training.test_distillation import student
from zoo import ZOO, built, ids, values

PAGES = ("ways-back", "distillation")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """my-model, my-moe (ten copies that differ) and data, in the current folder."""
    monkeypatch.chdir(tmp_path)
    built(llama).save_pretrained("my-model")  # type: ignore[operator]  # a transformers model
    byte_level().save_pretrained("my-model")
    settings = {"upcycle-experts.by": {"kind": "noise", "std": 0.3}}
    moeify.convert("my-model", "my-moe", recipe="upcycle", experts=10, settings=settings)
    Path("text.txt").write_text(TEXT)
    torch.save({"input_ids": ids(4, 8)}, "text-ids.pt")


def llama() -> nn.Module:
    """With a vocabulary for the tokenizer."""
    model: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400, hidden_size=16, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=512,
        )
    )  # fmt: skip
    return model


def names() -> dict[str, Any]:
    batches = [{"input_ids": ids(2, 8, seed=seed)} for seed in range(3)]
    dense, classifier = ZOO["residual-stack"]().model, student()
    return {
        "moeify": moeify, "torch": torch, "F": F, "hidden": 16, "batches": batches,
        "labelled": [{**batch, "labels": batch["input_ids"]} for batch in batches], "dense": dense, "classifier": classifier,
        "pairs": [(values(8, 16, seed=seed), torch.zeros(8, dtype=torch.int64)) for seed in range(3)],
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_the_page_runs(page: str) -> None:
    text = (Path(__file__).parent.parent / "docs" / f"{page}.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 2
    given = names() | {"model": converted("llama")[1].model}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for number, block in enumerate(blocks):
            exec(compile(block, f"{page}, block {number}", "exec"), given)
            if not moeify.moe_layers(given["model"]):
                given["model"] = moeify.load("my-moe/")
