"""The native kernel against dense ONNX Runtime and com.microsoft::MoE: what `moeify bench --shape` measures, and one form more.

python -m benchmarks.kernel [--shapes 'NAME;NAME'] [--tokens 1,16,128,512] [--rounds 90] [--write]
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from benchmarks.rows import emit
from moeify.speed.cell import Cell
from moeify.speed.layer_shape import LayerShape
from moeify.speed.layer_subject import stack_subject
from moeify.speed.machine import measure_roof, this_machine
from moeify.speed.measuring import measure_cell, sessions
from moeify.speed.settings import Effort, Settings

if TYPE_CHECKING:
    import onnx_ir as ir

    from moeify.speed.layer_draws import LayerWeights
    from moeify.speed.layer_stack import Build, StackGraph

RESULTS = Path(__file__).parent / "results-kernel.jsonl"

SHAPES: Mapping[str, LayerShape] = {
    "768": LayerShape(768, 3072, 8, 2),
    "768 gated": LayerShape(768, 3072, 8, 2, "silu", gated=True),
    "2048": LayerShape(2048, 8192, 8, 2),
    "2048 gated": LayerShape(2048, 8192, 8, 2, "silu", gated=True),
    "64 experts": LayerShape(768, 3072, 64, 16),
    "fine, 48 of 16": LayerShape(576, 1536, 48, 12, shared=768, rank=16, threshold=True),
    "fine, 96 of 8": LayerShape(576, 1536, 96, 24, shared=768, rank=16, threshold=True),
    "fine, 96 of 16": LayerShape(576, 3072, 96, 24, shared=1536, rank=16, threshold=True),
}


def contrib(op: StackGraph, x: ir.Value, w: LayerWeights) -> ir.Value:
    """com.microsoft::MoE; swiglu wants the rows of gate and up interleaved."""
    s = w.shape
    into = np.stack([w.gate, w.up], axis=1).reshape(-1, s.hidden) if s.gated else w.up
    first = into.reshape(s.experts, -1, s.hidden)
    second = w.down.reshape(s.experts, -1, s.hidden).transpose(0, 2, 1)
    scores = op("MatMul", x, op.weight(w.router))
    kind = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0}
    kind = kind if s.gated else {"activation_type": "relu"}
    operands = [x, scores, op.weight(first), None, op.weight(second)]
    return op("MoE", *operands, domain="com.microsoft", k=s.top_k, normalize_routing_weights=1, **kind)


def measure(shape: LayerShape, settings: Settings) -> Iterator[Cell]:
    """A cell for each number of tokens; "converted" is the native kernel."""
    others: dict[str, Build] = {} if shape.shared or shape.rank or shape.threshold else {"com.microsoft::MoE": contrib}
    roof = measure_roof(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        subject = stack_subject(shape, Path(folder) / "stacks", settings, others)
        files = sessions(subject, threads=1)
        for place in subject.places:
            yield measure_cell(subject, files, place, roof, settings)


def row(name: str, shape: LayerShape, cell: Cell) -> dict[str, Any]:
    """Process CPU time, as other programs share the machine."""

    def shown(form: str) -> str:
        return "native" if form == "converted" else form

    return {
        "benchmark": "kernel",
        "shape": name,
        "tokens": cell.place.tokens,
        "ms a layer": {
            shown(form): [round(1e3 * t, 4) for t in (found.cpu.lower, found.cpu.median, found.cpu.upper)]
            for form, found in cell.forms.items()
        },
        "dense / form": {shown(form): round(cell.cpu_speedup(form), 2) for form in cell.converted},
        "ideal": round(1 / shape.active, 2),
        "rounds": cell.rounds,
    }


def environment() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = this_machine()
    return {"onnxruntime": onnxruntime.__version__, "machine": machine.name, "cores": machine.cores, "commit": commit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default=";".join(SHAPES), help="names of SHAPES, with ; between them")
    parser.add_argument("--tokens", default="1,16,128,512")
    parser.add_argument("--rounds", type=int, default=90)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    tokens = tuple(int(count) for count in options.tokens.split(","))
    settings = Settings(tokens, effort=Effort(options.rounds, seconds=600))
    for name in options.shapes.split(";"):
        found = (row(name, SHAPES[name], cell) | environment() for cell in measure(SHAPES[name], settings))
        emit(found, RESULTS, options.write)


if __name__ == "__main__":
    main()
