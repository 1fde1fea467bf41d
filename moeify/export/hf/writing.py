"""A converted decoder as a stock checkpoint: a folder that `AutoModelForCausalLM.from_pretrained` loads, no code beside it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moeify.errors import ConversionError, MissingExtraError
from moeify.export.atomic import EXPORT, whole_folder
from moeify.export.evaluations import Quality, recorded
from moeify.export.hf.card import CARD, card
from moeify.export.hf.checking import compare
from moeify.export.hf.checkpoint import write_checkpoint
from moeify.export.hf.dense_config import OWN
from moeify.export.hf.families import Family, families_of, family_of
from moeify.export.hf.flat_gates import router_scale
from moeify.export.hf.making import Making, entry_of, held, weight_digests
from moeify.export.hf.report import HfReport
from moeify.export.hf.shape import StockShape, shape_of
from moeify.export.hf.weights import layer_tensors, other_tensors, router_weight
from moeify.ir.model_graph import Batch
from moeify.layers.budget import moe_layers
from moeify.layers.moe_layer import MoELayer

#: Bytes of tensors in one file of the checkpoint, at most.
SHARD = 4 * 10**9

#: Where the FFN of a decoder layer stands in all models that have a stock class.
_PLACE = re.compile(r"model\.layers\.(\d+)\.mlp")


@dataclass(frozen=True)
class Told:
    """What a converted folder tells of its model. recipe: TOML; report: report.json, parsed; quality: evaluations it keeps."""

    recipe: str | None = None
    report: Mapping[str, Any] | None = None
    quality: tuple[Quality, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> Told:
        recipe, report = ((folder / name).read_text("utf-8") for name in ("recipe.toml", "report.json"))
        return cls(recipe, json.loads(report), recorded(folder))


def export_hf(
    model: nn.Module, example: Batch, output: Path, *, tokenizer: Any = None, lossy: bool = False, force: bool = False,
    most: int = SHARD, told: Told | None = None,
) -> HfReport:  # fmt: skip
    """Writes the folder once the stock model, loaded from it, has chosen the same experts and given the same outputs.

    lossy: leave out what no class holds (idle vectors, low-rank term, output bias, threshold); the report says what. most:
    of tensors in a file. Where experts are added up, gates of nearly 1 / top_k stand for it: see docs/stock-checkpoints.md. The
    model is left as it was. Raises ConversionError where no class holds the model, with the reason, or the written one computes
    something else; OutputError where the folder cannot be written.
    """
    started = time.monotonic()
    family, shape, lost = fitting(model, lossy=lossy)
    told = told or Told()
    with whole_folder(output, force) as part:
        made = _write(model, family, shape, part, most)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        found = compare(model, part, example, exact=not lost)
        report = HfReport(str(output), family.target, str(shape), lost, found, _size(part), time.monotonic() - started)
        (part / CARD).write_text(card(report, model, told.recipe, told.report, told.quality), "utf-8")
        made = replace(made, recipe=told.recipe, digests=weight_digests(part))
        (part / EXPORT).write_text(json.dumps(report.to_json() | {"made_of": made.to_json()}, indent=2) + "\n", "utf-8")
    return report


def fitting(model: nn.Module, *, lossy: bool = False) -> tuple[Family, StockShape, tuple[str, ...]]:
    """The class that holds the model, the shape of its experts, what is lost. Raises ConversionError where there is none."""
    source = check_source(model)
    layers = moe_layers(model)
    if not layers:
        raise ConversionError(f"{type(model).__name__}: has no MoE layer; convert it first")
    shape, lost = shape_of({path: layer.config for path, layer in layers.items()}, lossy=lossy)
    return family_of(source, shape, _dense_layers(model, layers)), shape, lost


def check_source(model: Any) -> dict[str, Any]:
    """The fields of the config of a model, converted or not. Raises ConversionError where no stock class computes what such a
    model does, MissingExtraError without transformers."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "hf", "a stock checkpoint") from error
    config: Any = model.config if isinstance(model, transformers.PreTrainedModel) else None
    source: dict[str, Any] = {} if config is None else config.to_dict()
    if source:
        families_of(source)
    if not source or not type(model).__name__.endswith("ForCausalLM"):
        raise ConversionError(f"{type(model).__name__}: stock Mixture-of-Experts classes hold decoders of transformers alone")
    return source


def _write(model: Any, family: Family, shape: StockShape, folder: Path, most: int) -> Making:
    from transformers import AutoModelForCausalLM

    layers, dtype = moe_layers(model), next(model.parameters()).dtype
    scales = {path: _scale(model, path, layer) if shape.gates == "one" else 1.0 for path, layer in layers.items()}
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(_config(model, family, shape), dtype=dtype)
    outline.generation_config = getattr(model, "generation_config", None)
    write_checkpoint(outline, _parts(model, family, shape, scales, dtype), folder, most)
    entries = {path: entry_of(path, held(layer.config)) for path, layer in layers.items()}
    return Making(model.config.model_type, model.config.intermediate_size, entries, scales)


def _config(model: Any, family: Family, shape: StockShape) -> Any:
    """That of the stock model: every field that both have, and its own."""
    from transformers import AutoConfig

    source = model.config.to_dict()
    known = AutoConfig.for_model(family.target).to_dict()
    fields = {name: value for name, value in source.items() if name in known and name not in OWN}
    fields |= family.fields(shape, source)
    dense = _dense_layers(model, moe_layers(model))
    if dense:
        fields |= {"mlp_only_layers": list(dense)} if family.dense == "any" else {"first_k_dense_replace": len(dense)}
    elif family.dense == "first":
        fields["first_k_dense_replace"] = 0
    return AutoConfig.for_model(family.target, **fields)


def _parts(
    model: nn.Module, family: Family, shape: StockShape, scales: Mapping[str, float], dtype: torch.dtype
) -> Iterator[dict[str, Tensor]]:
    """The tensors of the stock model: all that stays, then layer by layer, so that one layer's experts are held at a time."""
    layers = moe_layers(model)
    yield {name: _cast(tensor, dtype) for name, tensor in other_tensors(model, layers).items()}
    for path, layer in layers.items():
        found = layer_tensors(family, shape, _index(path), layer, scales[path])
        yield {name: _cast(tensor, dtype) for name, tensor in found.items()}


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == torch.float32 else tensor.to(dtype)


def _scale(model: nn.Module, path: str, layer: MoELayer) -> float:
    norm = model.get_parameter(f"model.layers.{_index(path)}.post_attention_layernorm.weight")
    return router_scale(router_weight(layer), norm)


def _index(path: str) -> int:
    """Of the decoder layer. Raises ConversionError for an FFN that stands somewhere else."""
    found = _PLACE.fullmatch(path)
    if found is None:
        raise ConversionError(f"{path}: no stock class has an MoE layer there")
    return int(found.group(1))


def _dense_layers(model: Any, layers: Mapping[str, MoELayer]) -> tuple[int, ...]:
    converted = {_index(path) for path in layers}
    return tuple(i for i in range(model.config.num_hidden_layers) if i not in converted)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
