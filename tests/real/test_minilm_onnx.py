"""paraphrase-MiniLM-L3-v2, which its package ships as an ONNX file alone: converted without a torch model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import AutoTokenizer

import moeify
from moeify.frontend.load_huggingface import TOKENIZER_FILES
from moeify.runtime.native import library
from moeify.runtime.session import session
from real.conftest import fetched

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("minilm-onnx")]

Feeds = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the tokenizer beside it, as docs/dense-onnx.md says."""
    folder = tmp_path_factory.mktemp("minilm-onnx")
    tokenizer = fetched("minilm")
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder)
    shutil.copy(fetched("minilm_onnx"), folder / "dense.onnx")
    return folder / "dense.onnx"


@pytest.fixture(scope="module")
def feeds(dense: Path, technical_text: Path) -> Feeds:
    lines = [line for line in technical_text.read_text("utf-8").splitlines() if len(line) > 60][:24]
    tokens = AutoTokenizer.from_pretrained(dense.parent)(lines, padding=True, truncation=True, return_tensors="np")
    return {name: tokens[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


def distance(path: Path, dense: Path, feeds: Feeds, *, native: bool) -> float:
    """The largest over the outputs, relative to the largest value of each; integers must be equal."""
    expected, found = session(dense, native=False).run(None, feeds), session(path, native=native).run(None, feeds)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(expected, found, strict=True))


def embeddings(path: Path, feeds: Feeds) -> NDArray[Any]:
    """Normalised, [rows, hidden]."""
    found = session(path).run(None, feeds)[-1]
    return np.asarray(found / np.linalg.norm(found, axis=-1, keepdims=True))


def test_with_all_experts_on_it_gives_what_the_dense_file_gives(dense: Path, feeds: Feeds, tmp_path: Path) -> None:
    done = moeify.convert(dense, tmp_path / "out", experts=16, top_k=16)
    assert [layer.path for layer in done.report.layers] == [f"model.0.auto_model.encoder.layer.{i}" for i in range(3)]
    assert {layer.activation for layer in done.report.layers} == {"gelu"}
    for native in (False, True) if library() is not None else (False,):
        assert distance(tmp_path / "out" / "model.onnx", dense, feeds, native=native) < 1e-5


def test_calibrated_on_text_it_stays_near_the_dense_file(
    dense: Path, feeds: Feeds, technical_text: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"calibrate": technical_text, "tokens": 4096}
    done = moeify.convert(dense, tmp_path / "best", recipe="best", active=0.5, **options)
    assert done.report.active_fraction <= 0.51
    expected = embeddings(dense, feeds)
    best = float((embeddings(tmp_path / "best" / "model.onnx", feeds) * expected).sum(-1).mean())
    moeify.convert(dense, tmp_path / "random", recipe="random", experts=16, top_k=8)
    random = float((embeddings(tmp_path / "random" / "model.onnx", feeds) * expected).sum(-1).mean())
    assert best > 0.8
    assert best > random
