"""The forms of a layer in stock ONNX Runtime: the rows and the constants of moeify/export/onnx/lowering/costs.py.

python -m benchmarks.lowerings [--shapes 'NAME;NAME'] [--tokens 1,4,16,128,512] [--rounds 9] [--write]
python -m benchmarks.lowerings --fit       # the constants, from the rows
python -m benchmarks.lowerings --choices   # what is chosen by them, and how near it comes to the best
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from scipy.optimize import nnls

from benchmarks.kernel import environment
from benchmarks.rows import emit
from moeify.export.onnx.attach import MoENode, moe_nodes, read_node
from moeify.export.onnx.body import moe_function
from moeify.export.onnx.body_shape import BodyShape
from moeify.export.onnx.forms import FINE, Form, Kind
from moeify.export.onnx.lowering import automatic, portable
from moeify.export.onnx.lowering.costs import Work, features
from moeify.measure.timing import interleaved
from moeify.runtime.session import session
from moeify.speed.layer_draws import EvenInputs, LayerWeights, draw_weights
from moeify.speed.layer_shape import LayerShape
from moeify.speed.layer_stack import converted, dense_gemm, save_stack

RESULTS = Path(__file__).parent / "results-lowerings.jsonl"
LAYERS = 4

SHAPES: Mapping[str, LayerShape] = {
    "64, 4": LayerShape(64, 256, 4, 1),
    "192, 16": LayerShape(192, 768, 16, 4),
    "768, 4": LayerShape(768, 3072, 4, 1),
    "768, 8": LayerShape(768, 3072, 8, 2),
    "768, 32": LayerShape(768, 3072, 32, 8),
    "768, 64": LayerShape(768, 3072, 64, 16),
    "768, 192": LayerShape(768, 3072, 192, 48),
    "768 gated, 8": LayerShape(768, 2048, 8, 2, "silu", gated=True),
    "768 gated, 32, half": LayerShape(768, 2048, 32, 16, "silu", gated=True),
    "384, 16": LayerShape(384, 1536, 16, 4),
    "384, 64": LayerShape(384, 1536, 64, 16),
    "1536, 16": LayerShape(1536, 6144, 16, 4),
    "1536, 16, three quarters": LayerShape(1536, 6144, 16, 12),
}


def measure(name: str, tokens: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """A row for each number of tokens: median ms a layer of every form."""
    shape, rng = SHAPES[name], np.random.default_rng(0)
    layers = [draw_weights(shape, rng) for _ in range(LAYERS)]
    kinds: list[Kind] = ["gathered", "masked", "contrib"]
    if shape.experts < FINE:
        kinds.append("unrolled")
    with tempfile.TemporaryDirectory() as folder:
        paths = {"dense": save_stack(Path(folder) / "dense.onnx", dense_gemm, layers)}
        paths |= {kind: bodied(Path(folder), layers, kind) for kind in kinds}
        sessions = {form: session(path, threads=1, native=False) for form, path in paths.items()}
        found = []
        for count in tokens:
            inputs, fresh = EvenInputs(shape), np.random.default_rng(count)
            calls = {form: partial(built.run, None) for form, built in sessions.items()}
            times = interleaved(calls, partial(inputs.draw, count, fresh), warmup=2, rounds=rounds)
            medians = {form: round(1e3 * timing.cpu.median / LAYERS, 4) for form, timing in times.items()}
            ratios = {form: round(medians["dense"] / ms, 2) for form, ms in medians.items() if form != "dense"}
            found.append(
                {"benchmark": "lowerings", "shape": name, "tokens": count, "ms a layer": medians, "dense / form": ratios}
            )
        return found


def bodied(folder: Path, layers: list[LayerWeights], kind: Kind) -> Path:
    """The stack as moeify::MoE nodes whose body has that form."""
    model = ir.load(save_stack(folder / f"{kind}.bare.onnx", converted, layers))
    size = layers[0].shape.neurons // layers[0].shape.experts
    for node in moe_nodes(model):
        model.functions.pop(node.op_identifier(), None)  # the one that was chosen
        function = moe_function(read_node(node).shape, form=Form(kind, size=size))
        node.overload = function.overload
        model.functions[function.identifier()] = function
    ir.save(model, folder / f"{kind}.onnx", external_data=f"{kind}.data")
    return folder / f"{kind}.onnx"


def fit() -> None:
    """Prints constants by least squares of the relative errors, and how far they are off."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    for kind in ("dense", "unrolled", "gathered", "masked", "contrib"):
        points = [(row, row["ms a layer"][kind]) for row in rows if kind in row["ms a layer"]]
        matrix = np.array([features(kind, work(SHAPES[row["shape"]]), row["tokens"]) for row, _ in points])
        times = np.array([time for _, time in points])
        costs, _ = nnls(matrix / times[:, None], np.ones(len(times)))
        off = np.abs(matrix @ costs / times - 1)
        shown = ", ".join(f"{cost:.2g}" for cost in costs)
        print(f'"{kind}": ({shown}),  # off by {np.median(off):.0%} (median), {off.max():.0%} at most')


def choices(tokens: tuple[int, ...]) -> None:
    """Prints, for portable and for auto: the form, and dense time / its time and / the best time at each number of tokens."""
    rows = {(row["shape"], row["tokens"]): row["ms a layer"] for row in map(json.loads, RESULTS.read_text().splitlines())}
    for name, s in SHAPES.items():
        offsets = tuple(range(0, s.neurons + 1, s.neurons // s.experts))
        shape = BodyShape(s.experts, "silu" if s.gated else "relu", present=frozenset({"k", *(["gate"] if s.gated else [])}))
        layer = MoENode(name, s.hidden, s.hidden, offsets, shape, s.top_k)
        for lowering, choose in (("portable", portable.choose), ("auto", automatic.choose)):
            form = choose(layer, tokens).form or Form("masked")
            shown = []
            for count in tokens:
                times = rows[name, count]
                taken = form.few if form.few and count <= form.few_tokens else form.many
                best = min(ms for kind, ms in times.items() if kind != "dense" and (lowering == "auto" or kind != "contrib"))
                shown.append(f"{times['dense'] / times[taken]:.2f} of {times['dense'] / best:.2f}")
            print(f"{name:26} {lowering:8} {form!s:45} {', '.join(shown)}")


def work(s: LayerShape) -> Work:
    return Work(s.hidden, s.hidden, s.experts, s.top_k, s.neurons, s.dense_weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default=";".join(SHAPES), help="names of SHAPES, with ; between them")
    parser.add_argument("--tokens", default="1,4,16,128,512")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--choices", action="store_true")
    options = parser.parse_args()
    tokens = tuple(int(count) for count in options.tokens.split(","))
    if options.fit:
        fit()
    elif options.choices:
        choices(tokens)
    else:
        for name in options.shapes.split(";"):
            emit((found | environment() for found in measure(name, tokens, options.rounds)), RESULTS, options.write)


if __name__ == "__main__":
    main()
