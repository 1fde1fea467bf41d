"""The native kernel against dense ONNX Runtime and com.microsoft::MoE: stacked layers, one thread, process CPU time.

python -m benchmarks.kernel [--precision fp32|int8] [--shapes 'NAME;NAME'] [--tokens 1,16,128,512] [--rounds 90] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.stacks import (
    Build,
    Shape,
    contrib,
    contrib_integers,
    dense_dynamic,
    dense_gemm,
    dense_matmul,
    dense_nbits,
    draw,
    inputs,
    native,
    native_integers,
    save,
)
from moeify.runtime.session import session

RESULTS = Path(__file__).parent / "results-kernel.jsonl"
#: Dense weights of a stack: 4 times a last-level cache of 32 MB, so that no run finds them in it.
STACK_BYTES = 4 * 32 * 2**20

SHAPES: Mapping[str, Shape] = {
    "768": Shape(768, 3072, 8, 2),
    "768 gated": Shape(768, 3072, 8, 2, gated=True),
    "2048": Shape(2048, 8192, 8, 2),
    "2048 gated": Shape(2048, 8192, 8, 2, gated=True),
    "64 experts": Shape(768, 3072, 64, 16),
    "fine, 48 of 16": Shape(576, 1536, 48, 12, shared=768, rank=16, threshold=True),
    "fine, 96 of 8": Shape(576, 1536, 96, 24, shared=768, rank=16, threshold=True),
    "fine, 96 of 16": Shape(576, 3072, 96, 24, shared=1536, rank=16, threshold=True),
}
#: Half of the weights active: in 8 bits the hardest case against a dense layer.
HALF: Mapping[str, Shape] = {
    f"{name}, top-4": replace(SHAPES[name], top_k=4) for name in ("768", "768 gated", "2048", "2048 gated")
}
#: Precision -> the forms of the dense layer, the library's own, and that of ONNX Runtime.
DENSE: Mapping[str, Mapping[str, Build]] = {
    "fp32": {"dense MatMul": dense_matmul, "dense Gemm": dense_gemm},
    "int8": {"dense DynamicQuantizeMatMul": dense_dynamic, "dense MatMulNBits": dense_nbits},
}
MOE: Mapping[str, tuple[Build, str, Build]] = {
    "fp32": (native, "com.microsoft::MoE", contrib),
    "int8": (native_integers, "com.microsoft::QMoE", contrib_integers),
}


def measure(name: str, tokens: tuple[int, ...], rounds: int, precision: str) -> list[dict[str, Any]]:
    """A row for each number of tokens: median and quartiles of ms a layer of every form."""
    shape, rng = {**SHAPES, **HALF}[name], np.random.default_rng(0)
    bytes_ = shape.dense_bytes // (4 if precision == "int8" else 1)
    layers = [draw(shape, rng) for _ in range(max(2, -(-STACK_BYTES // bytes_)))]
    own, other, build_other = MOE[precision]
    forms: dict[str, Build] = {**DENSE[precision], "native": own}
    if not (shape.shared or shape.rank or shape.threshold):
        forms[other] = build_other
    with tempfile.TemporaryDirectory() as folder:
        paths = {form: save(Path(folder) / f"{i}.onnx", build, layers) for i, (form, build) in enumerate(forms.items())}
        sessions = {form: session(path, threads=1, native=form == "native") for form, path in paths.items()}
        times = ((count, interleaved(sessions, shape, count, rounds, len(layers))) for count in tokens)
        return [row(name, shape, count, found, precision) for count, found in times]


def interleaved(
    sessions: Mapping[str, onnxruntime.InferenceSession], shape: Shape, tokens: int, rounds: int, layers: int
) -> dict[str, list[float]]:
    """Form -> ms of process CPU time a layer, for each round; every form sees the same fresh input."""
    rng = np.random.default_rng(tokens)
    times: dict[str, list[float]] = {form: [] for form in sessions}
    for number in range(rounds + 2):
        x = inputs(shape, tokens, rng)
        for form, built in sessions.items():
            start = time.process_time()
            built.run(None, {"x": x})
            if number >= 2:
                times[form].append((time.process_time() - start) / layers * 1e3)
    return times


def row(name: str, shape: Shape, tokens: int, times: Mapping[str, list[float]], precision: str) -> dict[str, Any]:
    medians = {form: float(np.median(values)) for form, values in times.items()}
    dense = min(medians[form] for form in DENSE[precision])
    return {
        "benchmark": "kernel",
        "precision": precision,
        "shape": name,
        "tokens": tokens,
        "ms a layer": {
            form: [round(float(q), 4) for q in np.quantile(values, (0.25, 0.5, 0.75))] for form, values in times.items()
        },
        "dense / form": {form: round(dense / value, 2) for form, value in medians.items() if form not in DENSE[precision]},
        "ideal": round(1 / shape.active, 2),
        "rounds": len(times["native"]),
    }


def environment() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"onnxruntime": onnxruntime.__version__, "machine": model, "cores": os.cpu_count(), "commit": commit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", choices=sorted(DENSE), default="fp32")
    parser.add_argument("--shapes", default="", help="names of SHAPES and HALF, with ; between them")
    parser.add_argument("--tokens", default="1,16,128,512")
    parser.add_argument("--rounds", type=int, default=90)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    tokens = tuple(int(count) for count in options.tokens.split(","))
    every = [*list(SHAPES)[:4], *HALF] if options.precision == "int8" else list(SHAPES)
    for name in options.shapes.split(";") if options.shapes else every:
        for found in measure(name, tokens, options.rounds, options.precision):
            line = json.dumps(found | environment())
            print(line, flush=True)
            if options.write:
                with RESULTS.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
