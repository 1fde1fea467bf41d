"""Small random models with example inputs and the feed-forward networks that are to be found in them.

    zoo = ZOO["llama"]()
    zoo.model(**zoo.example) or zoo.model(*zoo.example)     see `run`

Every call builds a new model from the same seed; the global generator is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from zoo_building import Zoo, built, ids, values
from zoo_huggingface import ARCHITECTURES, build
from zoo_own import OWN

__all__ = ["EXPORTED", "WITHOUT_SITES", "WITH_SITES", "WRITERS", "ZOO", "Zoo", "built", "ids", "values"]


def _huggingface(name: str) -> Zoo:
    row = ARCHITECTURES[name]
    example: dict[str, Any] = {}
    if row.inputs in ("pixels", "text and picture"):
        side = row.sizes.get("image_size", 16)
        example["pixel_values"] = values(2, 3, side, side)
    if row.inputs in ("ids", "both", "text and picture"):
        example["input_ids"] = ids()
    if row.inputs in ("ids", "text and picture"):
        example["attention_mask"] = torch.ones_like(example["input_ids"])
    if row.inputs == "speech":
        example["input_features"] = values(2, row.sizes["num_mel_bins"], 2 * row.sizes["max_source_positions"])
    if row.inputs == "sound":
        example["input_values"] = values(2, 400)
    if row.inputs in ("both", "speech"):
        example["decoder_input_ids"] = ids(2, 5, seed=2)
    return Zoo(built(lambda: build(name)), example, row.sites, row.way)


#: Name -> builder. `Zoo.sites` is empty where nothing may be found.
ZOO: Mapping[str, Callable[[], Zoo]] = MappingProxyType({name: partial(_huggingface, name) for name in ARCHITECTURES} | OWN)

#: Models whose every feed-forward network is refused, or that have none.
WITHOUT_SITES = tuple(name for name, row in ARCHITECTURES.items() if not row.sites)
WITH_SITES = tuple(name for name in ZOO if name not in WITHOUT_SITES)

#: Models that a test exports to ONNX and compares there: converted, or dense where nothing can be converted.
EXPORTED = tuple(ZOO)

#: Models that write text by `generate`.
WRITERS = tuple(name for name, row in ARCHITECTURES.items() if row.text)
