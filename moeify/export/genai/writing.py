"""A converted decoder as a folder for onnxruntime-genai: the ONNX file, genai_config.json and the tokenizer."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from moeify.export.atomic import EXPORT, whole_folder
from moeify.export.genai.checking import check_generation, installed
from moeify.export.genai.config import genai_config
from moeify.export.genai.decoders import decoder_example
from moeify.export.genai.report import GenaiReport
from moeify.export.onnx.exporting import export_onnx
from moeify.export.onnx.lowering.choices import TOKENS
from moeify.ir.model_graph import Batch
from moeify.layers.stochastic_router import StochasticRouter
from moeify.runtime.native import library

CONFIG = "genai_config.json"


def export_genai(
    model: nn.Module,
    example: Batch,
    output: Path,
    *,
    tokenizer: Any = None,
    force: bool = False,
    precision: str = "fp32",
    lowering: str = "auto",
    tokens: tuple[int, ...] = TOKENS,
    calibrate: Iterable[Batch] = (),
) -> GenaiReport:
    """Writes the folder once its ONNX file has given what the model gives (as `export_onnx`) and, where onnxruntime-genai is
    installed, that has opened the folder and generated what ONNX Runtime gives.

    precision, lowering, tokens, calibrate: as for `export_onnx`; with lowering "native" the operator library is copied into the
    folder, as onnxruntime-genai loads none from elsewhere. tokenizer: None leaves its files out. The model is left as it was.
    Raises ConversionError for another model than a decoder with a cache, and as `export_onnx`; OutputError where the folder
    cannot be written.
    """
    started = time.monotonic()
    ids = decoder_example(model, example)
    with whole_folder(output, force) as part:
        options: dict[str, Any] = {"precision": precision, "lowering": lowering, "tokens": tokens, "calibrate": calibrate}
        found = export_onnx(model, dict(ids), part / "model.onnx", **options)
        operators = _copied_library(part) if lowering == "native" else None
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        config = genai_config(model, tokenizer, found, operators)
        _write(part / CONFIG, config)
        version, alike = installed(), None
        if version is not None:
            prompt = ids["input_ids"][:1].cpu().numpy()
            context: int = config["model"]["context_length"]
            alike = check_generation(part, prompt, context=context, native=lowering == "native", compare=not _random(model))
        files = tuple(sorted(path.name for path in part.iterdir()))
        size = sum(path.stat().st_size for path in part.iterdir())
        found = replace(found, path=str(output / "model.onnx"))
        report = GenaiReport(str(output), files, found, version, alike, size, time.monotonic() - started)
        _write(part / EXPORT, report.to_json())
    return report


def _copied_library(folder: Path) -> str:
    path = library()
    assert path is not None, "the lowering was checked"
    shutil.copyfile(path, folder / path.name)
    return path.name


def _random(model: nn.Module) -> bool:
    """Does a layer draw its experts, so that no two runs are alike?"""
    return any(isinstance(module, StochasticRouter) and module.mode == "random" for module in model.modules())


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", "utf-8")
