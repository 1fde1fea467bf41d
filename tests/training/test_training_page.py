"""Every block of code in docs/training.md runs, in order, on a small model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from training.trained_models import batches, llama

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture
def one_process(tmp_path: Path) -> Any:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_process: None) -> None:
    from transformers import Trainer, TrainingArguments

    monkeypatch.chdir(tmp_path)
    args = TrainingArguments(str(tmp_path), max_steps=2, gradient_accumulation_steps=2, report_to="none", use_cpu=True)
    (batch,) = batches(1, padded=True)
    rows = [{name: value[i] for name, value in batch.items()} for i in range(4)]
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) > 10
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for number, block in enumerate(blocks):
            model = llama()
            names: dict[str, Any] = {
                "model": model, "batch": batch, "args": args, "rows": rows, "Trainer": Trainer, "torch": torch,
                "moeify": __import__("moeify"), "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
            }  # fmt: skip
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
            names.get("tuned", model)(**batch).loss.backward()
