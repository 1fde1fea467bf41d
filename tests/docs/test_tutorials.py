"""Every command and block of code in the tutorials runs, in order, on a small model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cli.command_line import Command, Outcome
from data.small_tokenizers import TEXT, byte_level
from zoo import built

Run = Callable[[str], Outcome]

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("tutorials/command-line", "tutorials/passes-in-python", "tutorials/onnx-runtime", "tutorials/upcycling", "report")

#: Blocks and, of shells, what they hold.
BLOCK = re.compile(r"^```(console|sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def llama() -> Any:
    """A model of two layers with a vocabulary for the tokenizer."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400, hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=512,
        )
    )  # fmt: skip


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "my-model"
    model: Any = built(llama)
    model.save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return folder


def commands(kind: str, text: str) -> list[str]:
    """The calls of moeify in a block of a shell."""
    start = r"^\$ moeify (.*)$" if kind == "console" else r"^moeify (.*?)(?:\s+#.*)?$"
    return re.findall(start, text, re.MULTILINE)


def run_line(command: Command, line: str) -> None:
    call, _, file = line.partition(" > ")
    done = command(call)
    assert done.code == 0, (line, done)
    if file:
        Path(file).write_text(done.out, "utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(
    page: str, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my-model").symlink_to(dense)
    Path("text.txt").write_text(TEXT, "utf-8")
    Path("other.txt").write_text(TEXT[len(TEXT) // 2 :], "utf-8")
    command, names, ran = Command(capsys), dict[str, Any](), 0
    if page == "report":
        run_line(command, "convert my-model/ -o my-moe/ --recipe markers --calibrate text.txt --tokens 256")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for kind, text in BLOCK.findall((DOCS / f"{page}.md").read_text("utf-8")):
            if kind == "python":
                exec(compile(text, f"{page}, a block of code", "exec"), names)
                ran += 1
            for line in commands(kind, text) if kind != "python" else ():
                run_line(command, line)
                ran += 1
    assert ran >= 5
