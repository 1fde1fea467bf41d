"""What lower precision costs SmolLM2-135M in ONNX Runtime: perplexity of the dense model and of 16 experts a layer, all on.

PYTHONPATH=examples python -m benchmarks.precision [--precisions fp32,int8,int4] [--tokens 2048] [--calibrate 4096] [--write]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import moeify
import real_models
from benchmarks.rows import arguments, machine, show
from moeify.data.data_set import DataSet
from moeify.data.open_data import open_data
from moeify.export.onnx.exporting import export_onnx
from moeify.frontend.load_model import load_model
from moeify.frontend.loaded import LoadedModel
from moeify.runtime.decoder import Decoder
from moeify.runtime.session import session

WINDOW = 512
EXPERTS = 16


def models() -> dict[str, nn.Module]:
    """All experts on, so that what differs is the precision alone."""
    folder = real_models.smollm2()
    converted = moeify.convert(folder, recipe="emoe", experts=EXPERTS, top_k=EXPERTS).model
    return {"dense": load_model(folder).model, "all experts on": converted}


def measured(name: str, model: nn.Module, loaded: LoadedModel, precision: str, tokens: int, calibrate: int) -> dict[str, Any]:
    def text(path: Path, tokens: int) -> DataSet:
        return open_data(path, tokenizer=loaded.tokenizer, example=loaded.example, tokens=tokens, batch=1)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        seen = text(real_models.encyclopaedic_text(), calibrate) if calibrate else ()
        report = export_onnx(model, loaded.example, path, precision=precision, calibrate=seen)
        data = text(real_models.technical_text(), tokens)
        decoder = Decoder(session(path, threads=1))
        losses = [loss for batch in data for loss in _losses(decoder, batch)]
    return {
        "benchmark": "precision", "model": "SmolLM2-135M", "form": name, "precision": precision, "tokens": len(losses),
        "calibration tokens": calibrate, "seconds": round(report.seconds, 1),
        "perplexity": round(float(np.exp(np.mean(losses))), 3), "bytes": report.size,
        "largest distance": round(max(check.distance for check in report.checks), 6), **machine(),
    }  # fmt: skip


def _losses(decoder: Decoder, batch: Any) -> list[float]:
    """Negative log-likelihood of every token but the first of each row, by the file."""
    found: list[float] = []
    for row in batch["input_ids"].numpy():
        logits = torch.from_numpy(np.asarray(decoder.step(row[None], np.ones((1, len(row)), dtype=np.int64))))
        lines = logits.reshape(-1, logits.shape[-1]).double()[:-1].log_softmax(-1)
        found += (-lines[torch.arange(len(lines)), torch.from_numpy(row[1:])]).tolist()
    return found


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--precisions", default="fp32,int8,int4")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--calibrate", type=int, default=0, help="tokens of calibration text")
    given = parser.parse_args()
    loaded = load_model(real_models.smollm2())
    for name, model in models().items():
        for precision in given.precisions.split(","):
            show(measured(name, model, loaded, precision, given.tokens, given.calibrate), given.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
