"""What comes after a conversion: measure the model, write it as ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeify.api.arguments import Data, Example, Factory, Source, device_of, example_of, open_batches
from moeify.errors import UsageError
from moeify.pipeline.context import Progress, no_progress

if TYPE_CHECKING:
    from moeify.export.onnx.report import OnnxReport
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
    allow_pickle: bool = False,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measures a converted model on data: perplexity, distance from the dense model, active fraction, load of the experts.

    dense: the model before conversion, for what compares with it. nulls: adds all experts on, oracle routing, random
    partition and a static mask. tokens: stop early. allow_pickle: opens either model's pickle, which runs what it says. Raises
    InputError for what cannot be read.
    """
    from moeify.export.folder import load_folder
    from moeify.frontend.load_model import load_model
    from moeify.frontend.sniff import sniff
    from moeify.measure.evaluate import evaluate_model

    found = load_folder(Path(folder), factory=factory, device=device_of(device), allow_pickle=allow_pickle)
    batch = example_of(found, example)
    before = None
    if dense is not None:
        bare = isinstance(dense, str | Path) and sniff(Path(dense)) in ("torch", "pickle", "safetensors")
        loaded = load_model(
            dense,
            factory=factory if bare else None,
            example=batch,
            dtype=found.manifest.dtype,
            device=device,
            allow_pickle=allow_pickle,
        )
        before = loaded.model
    batches = open_batches(data, found.model, found.tokenizer, batch, tokens)
    return evaluate_model(
        found.model, batches, dense=before, tokenizer=found.tokenizer, nulls=nulls, seed=seed, progress=progress
    )


def export(
    folder: str | Path,
    output: str | Path,
    *,
    to: str = "onnx",
    lowering: str = "auto",
    tokens: Sequence[int] = (1, 128),
    factory: Factory | None = None,
    example: Example | None = None,
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = no_progress,
) -> OnnxReport:
    """Writes a converted model as an ONNX file; it is compared with the eager model first.

    lowering: auto, portable, standard, contrib or native: what an MoE layer becomes; tokens: how many a call will have
    (docs/onnx.md). Raises UsageError for another format than onnx or an unknown lowering, InputError, ConversionError and
    OutputError as their words say.
    """
    if to != "onnx":
        raise UsageError(f"cannot export to {to!r}: known is onnx")
    from moeify.export.atomic import check_target
    from moeify.export.folder import load_folder
    from moeify.export.onnx.exporting import export_onnx
    from moeify.export.onnx.lowering.choices import check_lowering

    check_lowering(lowering, tuple(tokens))
    check_target(Path(output), force=force)
    found = load_folder(Path(folder), factory=factory, allow_pickle=allow_pickle)
    progress("exporting ONNX", 0, None)
    options: dict[str, Any] = {"lowering": lowering, "tokens": tuple(tokens)}
    return export_onnx(found.model, example_of(found, example), Path(output), force=force, **options)
