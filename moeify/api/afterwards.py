"""What comes after a conversion: measure the model, write it as ONNX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeify.api.arguments import Data, Example, Factory, Source, dense_model, device_of, example_of, open_batches
from moeify.api.models import layers_by_site
from moeify.errors import UsageError
from moeify.pipeline.context import Progress, no_progress
from moeify.pipeline.size import parse_size

if TYPE_CHECKING:
    from moeify.export.folder import LoadedFolder
    from moeify.export.genai.report import GenaiReport
    from moeify.export.hf.report import HfReport
    from moeify.export.onnx.report import OnnxReport
    from moeify.ir.model_graph import Batch
    from moeify.measure.evaluation import Evaluation


def evaluate(
    folder: str | Path,
    data: Data,
    *,
    dense: Source | None = None,
    nulls: bool = False,
    tokens: int | None = None,
    factory: Factory | None = None,
    example: Example | None = None,
    seed: int = 0,
    device: str = "cpu",
    record: bool = False,
    allow_pickle: bool = False,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measures a converted model on data: perplexity, distance from the dense model, active fraction, load of the experts.

    dense: the model before conversion, for what compares with it. nulls: adds all experts on, oracle routing, a random
    partition, a static mask and full-rank compensation; they are made of the dense model's FFNs where it is given. tokens: stop
    early. allow_pickle: opens either model's pickle, which runs what it says. What is found is void where the layers use
    over 1 % more weights than the recipe was to. record: keep it in the folder, for the model card of `export_hf`
    and the page of `report`. Raises InputError for what cannot be read, OutputError where it is to be kept and cannot.
    """
    from moeify.export import evaluations
    from moeify.export.folder import load_folder
    from moeify.measure.dense_ffn import dense_ffns
    from moeify.measure.evaluate import evaluate_model

    if record:
        evaluations.check_record(Path(folder))
    found = load_folder(Path(folder), factory=factory, device=device_of(device), allow_pickle=allow_pickle)
    batch = example_of(found, example)
    before = None
    if dense is not None:
        before = dense_model(
            dense, factory, batch, dtype=found.manifest.dtype, device=device, allow_pickle=allow_pickle
        ).model  # fmt: skip
    batches = open_batches(data, found.model, found.tokenizer, batch, tokens)
    ffns = {} if before is None or not nulls else dense_ffns(before, found.manifest.layers)
    result = evaluate_model(
        found.model, batches, dense=before, tokenizer=found.tokenizer, nulls=nulls, ffns=ffns,
        layers=layers_by_site(found.model), budget=found.budget, seed=seed, progress=progress,
    )  # fmt: skip
    if record:
        evaluations.record(Path(folder), result.to_json())
    return result


def export(
    folder: str | Path,
    output: str | Path,
    *,
    to: str = "onnx",
    precision: str = "fp32",
    lowering: str = "auto",
    tokens: Sequence[int] = (1, 128),
    calibrate: Data | None = None,
    calibration_tokens: int = 4096,
    factory: Factory | None = None,
    example: Example | None = None,
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = no_progress,
) -> OnnxReport:
    """Writes a converted model as an ONNX file; it is compared with the eager model first.

    precision: fp32, fp16, int8 or int4: how weights are stored; calibrate: data by which int8 and int4 round better, of which
    calibration_tokens are read (docs/quantisation.md). lowering: auto, portable, standard, contrib or native: what an MoE layer
    becomes; tokens: how many a call will have (docs/onnx.md). Raises UsageError for another format than onnx, an unknown
    precision or lowering, InputError, ConversionError and OutputError as their words say.
    """
    if to != "onnx":
        raise UsageError(f"cannot export to {to!r}: known are onnx, hf by `export_hf` and genai by `export_genai`")
    from moeify.export.atomic import check_target
    from moeify.export.folder import load_folder
    from moeify.export.onnx.exporting import export_onnx
    from moeify.export.onnx.lowering.choices import check_lowering
    from moeify.export.onnx.precision.choices import check_calibration, check_precision

    check_precision(precision)
    check_calibration(precision, calibrate is not None)
    check_lowering(lowering, tuple(tokens))
    check_target(Path(output), force=force)
    found = load_folder(Path(folder), factory=factory, allow_pickle=allow_pickle)
    progress("exporting ONNX", 0, None)
    options: dict[str, Any] = {"precision": precision, "lowering": lowering, "tokens": tuple(tokens)}
    batch = example_of(found, example)
    seen = _calibration(calibrate, found, batch, calibration_tokens)
    return export_onnx(found.model, batch, Path(output), force=force, calibrate=seen, **options)


def export_hf(
    folder: str | Path,
    output: str | Path,
    *,
    factory: Factory | None = None,
    example: Example | None = None,
    lossy: bool = False,
    max_shard_size: int | str = "4GB",
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = no_progress,
) -> HfReport:
    """Writes a converted decoder as a folder that plain transformers loads as one of its Mixture-of-Experts classes, once that
    has chosen the same experts and given the same outputs (docs/stock-checkpoints.md).

    lossy: leave out what no class holds. max_shard_size: of a file of weights, bytes or such as "4GB". Raises ConversionError
    where no class holds the model, with the reason; InputError and OutputError as their words say.
    """
    from moeify.export.atomic import check_target
    from moeify.export.folder import load_folder
    from moeify.export.hf import writing

    most = parse_size(max_shard_size, "max_shard_size")
    check_target(Path(output), force=force)
    found = load_folder(Path(folder), factory=factory, allow_pickle=allow_pickle)
    progress("writing the stock checkpoint", 0, None)
    return writing.export_hf(
        found.model, example_of(found, example), Path(output), tokenizer=found.tokenizer, lossy=lossy, force=force, most=most,
        told=writing.Told.of(Path(folder)),
    )  # fmt: skip


def export_genai(
    folder: str | Path,
    output: str | Path,
    *,
    precision: str = "fp32",
    lowering: str = "auto",
    tokens: Sequence[int] = (1, 128),
    calibrate: Data | None = None,
    calibration_tokens: int = 4096,
    factory: Factory | None = None,
    example: Example | None = None,
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = no_progress,
) -> GenaiReport:
    """Writes a converted decoder as a folder that onnxruntime-genai opens: model.onnx, compared with the eager model as by
    `export`, genai_config.json and the tokenizer (docs/serving.md).

    precision, calibrate, calibration_tokens, lowering, tokens: as for `export`. Where onnxruntime-genai is installed, it opens
    the folder and has to generate what ONNX Runtime does. Raises ConversionError for another model than a decoder of text,
    before its weights are read; else as `export`.
    """
    from moeify.export.atomic import check_target
    from moeify.export.folder import load_folder
    from moeify.export.genai import writing
    from moeify.export.genai.decoders import check_class
    from moeify.export.manifest import read_manifest
    from moeify.export.onnx.lowering.choices import check_lowering
    from moeify.export.onnx.packages import check_packages
    from moeify.export.onnx.precision.choices import check_calibration, check_precision

    check_precision(precision)
    check_calibration(precision, calibrate is not None)
    check_lowering(lowering, tuple(tokens))
    check_target(Path(output), force=force)
    check_class(read_manifest(Path(folder)).source.model_class)
    check_packages()
    found = load_folder(Path(folder), factory=factory, allow_pickle=allow_pickle)
    progress("exporting for onnxruntime-genai", 0, None)
    options: dict[str, Any] = {"precision": precision, "lowering": lowering, "tokens": tuple(tokens)}
    batch = example_of(found, example)
    seen = _calibration(calibrate, found, batch, calibration_tokens)
    return writing.export_genai(
        found.model, batch, Path(output), tokenizer=found.tokenizer, force=force, calibrate=seen, **options
    )


def _calibration(source: Data | None, found: LoadedFolder, example: Batch, tokens: int) -> Iterable[Batch]:
    return () if source is None else open_batches(source, found.model, found.tokenizer, example, tokens, rows=1)
