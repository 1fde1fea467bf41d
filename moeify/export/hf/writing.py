"""A converted decoder as a stock checkpoint: a folder that `AutoModelForCausalLM.from_pretrained` loads, no code beside it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moeify.errors import ConversionError, MissingExtraError
from moeify.export.atomic import EXPORT, whole_folder
from moeify.export.hf.card import CARD, card
from moeify.export.hf.checking import compare, score_spreads
from moeify.export.hf.families import Family, families_of, family_of
from moeify.export.hf.report import HfReport
from moeify.export.hf.shape import StockShape, shape_of
from moeify.export.hf.weights import layer_tensors, other_tensors
from moeify.ir.model_graph import Batch
from moeify.layers.budget import moe_layers
from moeify.layers.folding import folded_layers
from moeify.layers.moe_layer import MoELayer

#: A shard of the checkpoint, at most.
SHARD = "4GB"

#: Where the FFN of a decoder layer stands in all models that have a stock class.
_PLACE = re.compile(r"model\.layers\.(\d+)\.mlp")

#: Fields of a config that say what it is, and not what it computes.
_OWN = frozenset({"model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "auto_map"})


def export_hf(
    model: nn.Module, example: Batch, output: Path, *, tokenizer: Any = None, lossy: bool = False, force: bool = False,
    recipe: str | None = None,
) -> HfReport:  # fmt: skip
    """Writes the folder once the stock model, loaded from it, has chosen the same experts and given the same outputs.

    lossy: leave out what no class holds (idle vectors, low-rank term, output bias, threshold); the report says what. Where
    experts are added up, gates of nearly 1 / top_k stand for it: see docs/stock-checkpoints.md. The model is left as it was.
    Raises ConversionError where no class holds the model, with the reason, or the written one computes something else;
    OutputError where the folder cannot be written.
    """
    started = time.monotonic()
    family, shape, lost = fitting(model, lossy=lossy)
    with whole_folder(output, force) as part:
        _write(model, example, family, shape, part)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        agreement = compare(model, part, example, shape, exact=not lost)
        report = HfReport(str(output), family.target, str(shape), lost, agreement, _size(part), time.monotonic() - started)
        (part / CARD).write_text(card(report, recipe), "utf-8")
        (part / EXPORT).write_text(json.dumps(report.to_json(), indent=2) + "\n", "utf-8")
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


def _write(model: nn.Module, example: Batch, family: Family, shape: StockShape, folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    source: Any = model.config
    given = {name: value for name, value in source.to_dict().items() if name not in _OWN}
    known = AutoConfig.for_model(family.target).to_dict()
    fields = {name: value for name, value in given.items() if name in known} | family.fields(shape, source.to_dict())
    dense = _dense_layers(model, moe_layers(model))
    if dense:
        fields |= {"mlp_only_layers": list(dense)} if family.dense == "any" else {"first_k_dense_replace": len(dense)}
    elif family.dense == "first":
        fields["first_k_dense_replace"] = 0
    dtype = next(model.parameters()).dtype
    with torch.device("meta"):
        stock = AutoModelForCausalLM.from_config(AutoConfig.for_model(family.target, **fields), dtype=dtype)
    spreads = score_spreads(model, example) if shape.gates == "one" else {}
    with folded_layers(model):
        layers = moe_layers(model)
        state = other_tensors(model, layers)
        for path, layer in layers.items():
            state |= layer_tensors(family, shape, _index(path), layer, spreads.get(path, 0.0))
    state = {name: tensor if tensor.dtype == torch.float32 else tensor.to(dtype) for name, tensor in state.items()}
    missing, unexpected = stock.load_state_dict(state, strict=False, assign=True)
    missing = [name for name in missing if name not in (stock._tied_weights_keys or {})]
    if missing or unexpected:
        raise ConversionError(
            f"{family.target} has other tensors than this model: missing {', '.join(missing[:4]) or 'none'}, "
            f"unexpected {', '.join(unexpected[:4]) or 'none'}"
        )
    stock.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        stock.generation_config = model.generation_config
    stock.save_pretrained(folder, max_shard_size=SHARD)
    for file in folder.glob("*.safetensors"):  # safetensors leaves them to their owner alone
        file.chmod((folder / "config.json").stat().st_mode)


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
