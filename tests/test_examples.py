"""The examples run as README says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_pipeline_by_hand() -> None:
    printed = run("pipeline_by_hand.py")
    assert "3 layers converted" in printed
    assert "top-8 of 8: relative error 0.0000" in printed


@pytest.mark.slow
@pytest.mark.xdist_group("minilm")
def test_minilm(tmp_path: Path) -> None:
    printed = run("minilm.py", str(tmp_path / "out"))
    assert "3 layers converted" in printed
    lines = [line.split(maxsplit=1) for line in printed.splitlines() if line.strip().startswith(("0.", "1.", "-0."))]
    similar = {sentence: float(value) for value, sentence in lines}
    assert similar["Someone has a meal."] > similar["A compiler turns source code into machine code."]


@pytest.mark.slow
@pytest.mark.xdist_group("smollm2")
def test_smollm2(tmp_path: Path) -> None:
    printed = run("smollm2.py", str(tmp_path / "out"))
    assert "30 layers converted" in printed
    assert "ONNX Runtime says: The capital of France is" in printed


@pytest.mark.slow
@pytest.mark.xdist_group("minilm")
def test_emoe_finetuning(tmp_path: Path) -> None:
    printed = quick("emoe_finetuning", tmp_path)
    assert "  r on products, emoe, concatenated - dense: " in printed


@pytest.mark.slow
def test_upcycling_language_model(tmp_path: Path) -> None:
    printed = quick("upcycling_language_model", tmp_path)
    assert "  perplexity, upcycled - dense, equal operations: " in printed
    rows = (tmp_path / "rows.jsonl").read_bytes()
    again = quick("upcycling_language_model", tmp_path)  # says the same, and trains nothing
    assert again.splitlines() == [line for line in printed.splitlines() if not line.startswith("measure ")]
    assert (tmp_path / "rows.jsonl").read_bytes() == rows


@pytest.mark.slow
def test_thor_translation(tmp_path: Path) -> None:
    printed = quick("thor_translation", tmp_path)
    assert "  chrF, thor, merged - top-1 router: " in printed


def quick(name: str, folder: Path) -> str:
    """What the training example prints with --quick."""
    printed = run(f"{name}.py", "--quick", "--rows", str(folder / "rows.jsonl"))
    assert "2 seeds are complete in all arms" in printed
    return printed
