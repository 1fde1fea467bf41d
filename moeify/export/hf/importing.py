"""A stock Mixture-of-Experts checkpoint as a converted model: moeify's layers in the dense model of the same attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moeify.errors import ConversionError, InputError
from moeify.export.folder_skeleton import empty_model
from moeify.export.hf.checking import BOUNDS, agreement, check, layer_distance, load_stock, look
from moeify.export.hf.dense_config import dense_config
from moeify.export.hf.making import Making, entry_of, read_making
from moeify.export.hf.reading import layer_of, moe_block
from moeify.export.hf.report import Agreement
from moeify.export.manifest import LayerEntry
from moeify.frontend.example_inputs import example_inputs
from moeify.frontend.load_checks import some
from moeify.frontend.load_huggingface import TOKENIZER_FILES, tokenizer_in
from moeify.frontend.load_huggingface_files import check_config, read_json, weight_files
from moeify.frontend.load_quietly import quiet_transformers
from moeify.frontend.loaded import LoadedModel, SourceInfo, file_digest
from moeify.ir.model_graph import Batch
from moeify.layers.moe_layer import MoELayer
from moeify.splice.eager import install

#: Difference of logits / the largest one, and of a layer's outputs, where a layer computes what the stock class does. Logits of
#: bfloat16 gather the roundings of all layers; a layer alone is off by some 2^-8.
_SAME = BOUNDS | {torch.float32: 1e-4}
_SAME_LAYER = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


@dataclass(frozen=True, eq=False)
class Imported:
    """loaded: the converted model. entries: of its MoE layers, by path. made: what the checkpoint remembered of the model that
    it was made of; None for one that moeify did not write, or that was changed since."""

    loaded: LoadedModel
    entries: Mapping[str, LayerEntry] = field(repr=False)
    made: Making | None
    agreement: Agreement


def import_stock(folder: Path, dtype: torch.dtype, example: Batch | None = None) -> Imported:
    """Raises InputError for a folder that cannot be read, ConversionError with the reason for a model that moeify's layers do
    not compute, or that comes out another."""
    if not (folder / "config.json").is_file():
        reason = "has no config.json" if folder.is_dir() else "there is no such folder"
        raise InputError(f"{folder}: {reason}; give the folder of a stock checkpoint, as save_pretrained writes it")
    fields = read_json(folder / "config.json")
    stored = weight_files(folder)
    with quiet_transformers("a stock checkpoint") as transformers:
        check_config(fields, folder, transformers)
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        made = read_making(folder)
        target = dense_config(config.to_dict(), made)
        tokenizer, remark = (
            tokenizer_in(transformers, folder, folder) if any((folder / n).is_file() for n in TOKENIZER_FILES) else (None, None)
        )
        model = empty_model(transformers.AutoModelForCausalLM._model_mapping[type(target)], target, dtype)
    stock = load_stock(folder, dtype)
    batch = example_inputs(stock, tokenizer) if example is None else example
    seen = look(stock, batch)
    entries = _fill(model, stock, made)
    found = agreement(model, seen, batch)
    flat = made is not None and any(entry.config.gate_rule == "one" for entry in entries.values())
    bound = BOUNDS[dtype] if flat else _SAME[dtype]
    words = f"{folder}: does not compute the same as layers of moeify"
    check(found, bound, dtype, words)
    if not flat and not (apart := layer_distance(model, seen)) <= _SAME_LAYER[dtype]:
        raise ConversionError(f"{words}: a layer's outputs are apart by {apart:.1e}; nothing was written")
    digests = {path.name: file_digest(path) for path in (folder / "config.json", *stored)}
    source = SourceInfo("huggingface", folder.resolve().name, f"transformers.{type(model).__name__}", digests)
    notes = () if remark is None else (remark,)
    return Imported(LoadedModel(model, batch, source, tokenizer, folder, notes=notes), entries, made, found)


def _fill(model: Any, stock: Any, made: Making | None) -> dict[str, LayerEntry]:
    """Moves what the stock model holds into the empty dense one, layer by layer; nothing is left in the stock model."""
    entries: dict[str, LayerEntry] = {}
    for index, layer in enumerate(stock.model.layers):
        if moe_block(layer) is None:
            continue
        path = f"model.layers.{index}.mlp"
        shape, tensors = layer_of(stock.config, layer, path, made)
        entry = entries[path] = entry_of(path, shape)
        new = MoELayer(shape, device="meta")
        new.load_state_dict({name: tensor.contiguous() for name, tensor in tensors.items()}, assign=True)
        install(model, entry.rewrite, new, path, entry.places)
        for name in ("block_sparse_moe", "mlp", "shared_mlp"):
            if hasattr(layer, name):
                setattr(layer, name, nn.Identity())
    if not entries:
        raise ConversionError(f"{type(stock).__name__}: has no layer with experts")
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False, assign=True)
    missing = [name for name in missing if not any(name.startswith(f"{path}.") for path in entries)]
    if missing or unexpected:
        raise ConversionError(
            f"{type(stock).__name__}: has other tensors than a {type(model).__name__}: missing {some(missing) or 'none'}, "
            f"unexpected {some(unexpected) or 'none'}"
        )
    model.tie_weights()
    if stock.generation_config is not None:
        model.generation_config = stock.generation_config
    model.eval()
    return entries
