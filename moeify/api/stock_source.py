"""Checkpoints that are a stock Mixture-of-Experts already, known by their config before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moeify.api.arguments import Source
from moeify.errors import InputError


def check_not_stock(source: Source) -> None:
    """Raises InputError for the folder of a class that `moeify import` reads, where none of its layers is dense: nothing
    could be converted there."""
    from moeify.export.hf.dense_config import KNOWN
    from moeify.frontend.load_huggingface_files import read_json
    from moeify.frontend.sniff import sniff

    if not isinstance(source, str | Path):
        return
    folder = Path(source).expanduser()
    if not (folder / "config.json").is_file() or sniff(folder) != "huggingface":
        return
    fields = read_json(folder / "config.json")
    if fields.get("model_type") in KNOWN and not _dense_layers(fields):
        raise InputError(
            f"{source}: is a Mixture of Experts already ({fields['model_type']}), without a dense feed-forward network; "
            f"moeify import {source} -o OUT reads it, or give the dense model"
        )


def _dense_layers(fields: Mapping[str, Any]) -> bool:
    """As the configs of these classes say it. What one leaves out is the class's own: a GLM4-MoE begins with a dense layer."""
    first = fields.get("first_k_dense_replace", 1 if fields["model_type"] == "glm4_moe" else 0)
    return bool(first or fields.get("mlp_only_layers") or (fields.get("decoder_sparse_step") or 1) != 1)
