"""Writes a safetensors file tensor by tensor: the bytes of safetensors' own `save_file`, which looks at all of them at once.

The format (https://github.com/huggingface/safetensors#format): the header's length in 8 bytes, a JSON table of types, shapes
and places, padded with spaces to a multiple of 8; then the numbers, type by type, by name within one type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moeify.data.mapped_pages import let_go
from moeify.errors import OutputError

#: In the order in which tensors of several types stand in a file, first to last.
TYPES = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64", torch.float32: "F32",
    torch.uint32: "U32", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16",
    torch.int16: "I16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, str] | None = None) -> None:
    """tensors: contiguous, on any device. Those that lie in mapped files are let go one after another. about: the file's
    metadata.

    Raises OutputError for a type that the format does not hold; OSError where the disk takes no more.
    """
    ranks = {kind: rank for rank, kind in enumerate(TYPES)}
    for name, tensor in tensors.items():
        if tensor.dtype not in TYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise OutputError(f"{path.name}: cannot be written: {name} holds numbers of type {kind}; cast the model first")
    order = sorted(tensors, key=lambda name: (ranks[tensors[name].dtype], name))
    with path.open("wb") as file:
        file.write(_header({name: tensors[name] for name in order}, about))
        for name in order:
            flat = tensors[name].detach().cpu().flatten()
            if flat.numel():
                flat.view(torch.uint8).numpy().tofile(file)
            let_go((tensors[name],))


def _header(tensors: Mapping[str, Tensor], about: Mapping[str, str] | None) -> bytes:
    end = 0
    table: dict[str, Any] = {} if about is None else {"__metadata__": dict(about)}
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        table[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    content = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content
