"""SmolLM2-135M: conversion, quality, and speed in ONNX Runtime against the dense model. Prints one row of JSON.

PYTHONPATH=examples python -m benchmarks.smollm2 [--recipe NAME] [--top-k K] [--no-onnx] [--write]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import real_models
from benchmarks.rows import arguments, machine, show
from moeify.data.open_data import open_data
from moeify.export.folder import load_folder
from moeify.export.onnx.exporting import export_onnx
from moeify.frontend.load_model import load_model
from moeify.measure.evaluate import evaluate_model
from moeify.measure.timing import interleaved
from moeify.runtime.decoder import Decoder
from moeify.runtime.session import session

TESTS = Path(__file__).parent.parent / "tests" / "real"
PROMPTS = (1, 16, 128, 512)


def conversion(recipe: str, top_k: int, folder: Path) -> dict[str, Any]:
    """Seconds and peak bytes of a conversion with 16 experts and 8,192 calibration tokens, in a process of its own."""
    arguments = [str(real_models.smollm2()), str(folder), "--text", str(real_models.technical_text())]
    arguments += ["--recipe", recipe, "--top-k", str(top_k)]
    script = str(TESTS / "measure_conversion.py")
    run = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def quality(folder: Path) -> dict[str, float]:
    """Perplexity of the dense model and the converted one on 8 windows of 512 tokens of each text."""
    found, dense = load_folder(folder), load_model(real_models.smollm2())
    figures: dict[str, float] = {}
    for name, text in (("technical", real_models.technical_text()), ("encyclopaedic", real_models.encyclopaedic_text())):
        data = open_data(text, tokenizer=found.tokenizer, example=dense.example, tokens=40_000, batch=2)
        evaluation = evaluate_model(found.model, list(data)[-4:], dense=dense.model)
        for score in evaluation.scores:
            if score.perplexity is not None:
                figures[f"{name} perplexity, {score.name}"] = round(score.perplexity.value, 2)
    return figures


def speed(folder: Path, scratch: Path) -> dict[str, Any]:
    """Milliseconds in ONNX Runtime on one thread: prompts of several lengths, and a step after 128 tokens. "native": the
    converted file with the native library."""
    found, dense = load_folder(folder), load_model(real_models.smollm2())
    for name, model in (("dense", dense.model), ("converted", found.model)):
        export_onnx(model, dense.example, scratch / f"{name}.onnx")
    decoders = {
        "dense": Decoder(session(scratch / "dense.onnx", threads=1, native=False)),
        "converted": Decoder(session(scratch / "converted.onnx", threads=1, native=False)),
        "native": Decoder(session(scratch / "converted.onnx", threads=1, native=True)),
    }
    figures: dict[str, Any] = {}
    for tokens in PROMPTS:
        ids = np.arange(tokens, dtype=np.int64)[None] % 40_000 + 100
        calls = {name: partial(prefill, decoder, ids) for name, decoder in decoders.items()}
        figures[f"prompt of {tokens}"] = milliseconds(calls)
    ids = np.arange(128, dtype=np.int64)[None] + 100
    for decoder in decoders.values():
        prefill(decoder, ids, None)
    figures["step"] = milliseconds({name: partial(step, decoder, ids[:, :1]) for name, decoder in decoders.items()})
    return figures


def prefill(decoder: Decoder, ids: Any, _: None) -> None:
    decoder.step(ids, np.ones_like(ids))


def step(decoder: Decoder, ids: Any, _: None) -> None:
    """The cache stays as it was."""
    cache = decoder.cache
    decoder.step(ids)
    decoder.cache = cache


def milliseconds(calls: Mapping[str, Callable[[None], object]]) -> dict[str, float]:
    timings = interleaved(calls, lambda: None, warmup=2, rounds=11)
    return {name: round(1000 * timing.wall.median, 1) for name, timing in timings.items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--recipe", default="markers")
    parser.add_argument("--top-k", type=int, default=12)
    parser.add_argument("--no-onnx", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "moe"
        row: dict[str, Any] = {
            "benchmark": "smollm2", "recipe": options.recipe, "experts": 16, "top_k": options.top_k, **machine(),
            "conversion": conversion(options.recipe, options.top_k, folder), **quality(folder),
        }  # fmt: skip
        row["active_fraction"] = json.loads((folder / "report.json").read_text())["active_fraction"]
        if not options.no_onnx:
            row["onnxruntime, ms"] = speed(folder, Path(scratch))
    show(row, options.write)


if __name__ == "__main__":
    main()
