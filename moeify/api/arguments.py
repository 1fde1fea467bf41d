"""What the functions of the API take, and the checks that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moeify.errors import UsageError
from moeify.ir.model_graph import Batch

if TYPE_CHECKING:
    from moeify.data.data_set import DataSet
    from moeify.export.folder import LoadedFolder
    from moeify.frontend.loaded import LoadedModel

#: A model: a path (Hugging Face or adapter folder, GGUF file, .pt, .pt2, state_dict with a factory), or a module in memory.
Source = str | Path | nn.Module

#: A callable without arguments that returns the module, or its name `pkg.mod:callable`.
Factory = str | Callable[[], nn.Module]

#: Model inputs, a file of them, or `pkg.mod:callable`.
Example = str | Path | Batch

#: Calibration or evaluation data: a file, `pkg.mod:callable`, several of these, or batches in memory.
Data = str | Path | Sequence[str | Path] | Callable[[], Iterable[Batch]] | Iterable[Batch]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EXPORTS = ("torch", "onnx", "hf")


def open_batches(
    source: Data, model: nn.Module, tokenizer: Any, example: Batch | None, tokens: int | None, rows: int = 4
) -> DataSet:
    """Data in the form of the example (without one as it is), re-iterable. rows: of a batch of text or tensors. Raises
    InputError for what does not fit."""
    from moeify.data.open_data import open_data
    from moeify.measure.outputs import vocabulary_of

    vocabulary = vocabulary_of(model)
    return open_data(source, tokenizer=tokenizer, example=example, tokens=tokens, vocabulary=vocabulary, batch=rows)


def check_files(data: Data) -> None:
    """Raises InputError for a data file that is absent or of no known kind; what Python gives is not looked at."""
    from moeify.data.importable import is_importable_name
    from moeify.data.mixed import sources_of
    from moeify.data.sniff import kind_of

    for source in sources_of(data):
        if isinstance(source, str | Path) and not is_importable_name(str(source)):
            kind_of(Path(source).expanduser())


def example_of(found: LoadedFolder, example: Example | None) -> Batch:
    """One batch for a converted model: the one given, the one it was converted with if that was assumed, or one that its config
    tells. Raises InputError where there is none."""
    from moeify.frontend.example_inputs import example_inputs
    from moeify.frontend.load_example import read_example

    wanted = found.example if example is None else example
    if wanted is None:
        return example_inputs(found.model, found.tokenizer)
    return read_example(wanted, str(next(found.model.parameters()).device))


def dense_model(
    source: Source,
    factory: Factory | None,
    example: Batch,
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    allow_pickle: bool = False,
) -> LoadedModel:
    """The model before a conversion, with the converted one's example. factory: as for the folder; a source that says itself
    which model it is needs none. Raises as `load_model`."""
    from moeify.frontend.load_model import load_model
    from moeify.frontend.sniff import sniff

    bare = isinstance(source, str | Path) and sniff(Path(source)) in ("torch", "pickle", "safetensors")
    return load_model(
        source, factory=factory if bare else None, example=example, dtype=dtype, device=device, allow_pickle=allow_pickle
    )


def check_exports(export: Sequence[str], output: str | Path | None, *, dtype: str = "fp32", device: str = "cpu") -> None:
    """Raises UsageError for an export that is unknown, has no folder to go to, or cannot be made of such a model;
    MissingExtraError where a package for it is absent. All before anything is loaded."""
    for name in export:
        if name not in EXPORTS:
            raise UsageError(f"unknown export {name!r}: known are {', '.join(EXPORTS)}")
    if output is None and set(export) - {"torch"}:
        raise UsageError(f"exporting {', '.join(export)} needs an output folder")
    if "onnx" not in export:
        return
    if dtype != "fp32":
        raise UsageError(f"ONNX Runtime's CPU cannot run a model in {dtype}: export ONNX with --dtype fp32")
    if torch.device(device).type != "cpu":
        raise UsageError(f"exporting ONNX compares with the model on the CPU: leave out --device {device}")
    from moeify.export.onnx.packages import check_packages

    check_packages()


def check_output(output: Path, source: Source, *, force: bool) -> None:
    """Raises OutputError where a conversion of the source could not be written there."""
    from moeify.export.atomic import check_target
    from moeify.export.folder import check_apart

    check_target(output, force=force)
    if not isinstance(source, nn.Module):
        check_apart(output, Path(source).expanduser())


def dtype_of(name: str) -> torch.dtype:
    """Raises UsageError for a name that is not in DTYPES."""
    if name not in DTYPES:
        raise UsageError(f"dtype is {name!r}: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def device_of(name: str) -> str:
    """Raises UsageError for a device that torch does not have here."""
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise UsageError(f"device is {name!r}: choose cpu, or cuda where torch has it") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is 'cuda', but torch sees no CUDA device here: choose cpu")
    return name
