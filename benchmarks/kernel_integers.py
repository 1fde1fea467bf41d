"""The native kernel of 8 bits against the faster dense form of 8 bits and com.microsoft::QMoE: stacks of layers, one thread.

python -m benchmarks.kernel_integers [--shapes 'NAME;NAME'] [--tokens 1,16,128,512] [--rounds 5] [--write]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.integer_forms import DENSE, MOE
from benchmarks.kernel import RESULTS, SHAPES, environment
from benchmarks.rows import emit
from moeify.runtime.session import session
from moeify.speed.layer_draws import EvenInputs, draw_weights, layers_beyond
from moeify.speed.layer_shape import LayerShape
from moeify.speed.layer_stack import save_stack
from moeify.speed.machine import last_level_cache

QUARTER = {name: SHAPES[name] for name in ("768", "768 gated", "2048", "2048 gated")}
#: A quarter of the weights active, and half of them: in 8 bits the harder case against a dense layer.
ALL: Mapping[str, LayerShape] = QUARTER | {f"{name}, top-4": replace(shape, top_k=4) for name, shape in QUARTER.items()}


def measure(name: str, tokens: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """A row for each number of tokens: quartiles of ms a layer of every form."""
    shape, rng = ALL[name], np.random.default_rng(0)
    layers = [draw_weights(shape, rng) for _ in range(layers_beyond(4 * last_level_cache(), shape))]  # a byte a weight
    with tempfile.TemporaryDirectory() as folder:
        builds = {**DENSE, **MOE}
        paths = {form: save_stack(Path(folder) / f"{i}.onnx", build, layers) for i, (form, build) in enumerate(builds.items())}
        built = {form: session(path, threads=1, native=form == "native") for form, path in paths.items()}
        return [row(name, shape, count, interleaved(built, shape, count, rounds, len(layers))) for count in tokens]


def interleaved(
    sessions: Mapping[str, onnxruntime.InferenceSession], shape: LayerShape, tokens: int, rounds: int, layers: int
) -> dict[str, list[float]]:
    """Form -> ms of process CPU time a layer, for each round; every form sees the same fresh input."""
    rng, inputs = np.random.default_rng(tokens), EvenInputs(shape)
    times: dict[str, list[float]] = {form: [] for form in sessions}
    for number in range(rounds + 2):
        x = inputs.draw(tokens, rng)
        for form, built in sessions.items():
            start = time.process_time()
            built.run(None, x)
            if number >= 2:
                times[form].append((time.process_time() - start) / layers * 1e3)
    return times


def row(name: str, shape: LayerShape, tokens: int, times: Mapping[str, list[float]]) -> dict[str, Any]:
    medians = {form: float(np.median(values)) for form, values in times.items()}
    dense = min(medians[form] for form in DENSE)
    quartiles = {form: [round(float(q), 4) for q in np.quantile(values, (0.25, 0.5, 0.75))] for form, values in times.items()}
    return {
        "benchmark": "kernel",
        "precision": "int8",
        "shape": name,
        "tokens": tokens,
        "ms a layer": quartiles,
        "dense / form": {form: round(dense / medians[form], 2) for form in MOE},
        "ideal": round(1 / shape.active, 2),
        "rounds": len(times["native"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default=";".join(ALL), help="names, with ; between them")
    parser.add_argument("--tokens", default="1,16,128,512")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    tokens = tuple(int(count) for count in options.tokens.split(","))
    for name in options.shapes.split(";"):
        emit((found | environment() for found in measure(name, tokens, options.rounds)), RESULTS, options.write)


if __name__ == "__main__":
    main()
