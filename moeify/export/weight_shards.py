"""The weights of an output folder: one file, or several for a model that is larger than one may be.

    moeify.safetensors                   everything
    moeify-00001-of-00003.safetensors    the first of three; tensors stand in the order of the state_dict

A file is mapped as a whole, which a system may refuse where it is larger than its memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

#: Bytes of tensors in one file; a tensor that is larger has one to itself.
SHARD = 4 << 30

_NAME = re.compile(r"moeify(-\d{5}-of-\d{5})?\.safetensors")


def shards(tensors: Mapping[str, Tensor], most: int) -> dict[str, dict[str, Tensor]]:
    """File name -> its tensors by name."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if parts[-1] and size + tensor.nbytes > most:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    if len(parts) == 1:
        return {"moeify.safetensors": parts[0]}
    return {f"moeify-{i:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts, 1)}


def weight_names(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names that are files of weights, in order."""
    return tuple(sorted(name for name in names if _NAME.fullmatch(name)))
