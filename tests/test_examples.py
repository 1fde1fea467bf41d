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
