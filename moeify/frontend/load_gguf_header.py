"""The header of a GGUF file, read with every length held against the file: the gguf package would walk a wrong one for ever.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from moeify.errors import InputError

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
#: Bytes of the scalar types, by their number; integers are those with a format to read them with.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_INTEGERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"}
_DEEPEST = 8  # arrays in arrays; writers use one level


@dataclass(frozen=True)
class GgufTensor:
    """elements: how many numbers. kind: the number of its type. offset: from the start of the data, in bytes."""

    name: str
    elements: int
    kind: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """integers: of the metadata, by key. alignment: of header and tensors, in bytes. data: the bytes behind the header."""

    integers: dict[str, int]
    tensors: tuple[GgufTensor, ...]
    alignment: int
    data: int


class _WrongError(Exception):
    """What is wrong with the header."""


def read_gguf_header(path: Path, sizes: Mapping[int, tuple[int, int]]) -> GgufHeader:
    """Raises InputError where a length or count in it does not fit into the file, or the tensors do not lie end to end.

    sizes: the number of a type of tensor -> how many elements make a block, and its bytes.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Reader(data).header()
        _check_places(header, sizes)
        _check_blocks(header)
        return header
    except (_WrongError, ValueError) as error:  # ValueError: an empty file cannot be mapped, bytes are no UTF-8
        raise InputError(f"{path}: is no whole GGUF file ({error}); copy or download it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _check_places(header: GgufHeader, sizes: Mapping[int, tuple[int, int]]) -> None:
    place = 0
    for tensor in header.tensors:
        if tensor.kind not in sizes:
            raise _WrongError(f"the tensor {tensor.name!r} is of the unknown type {tensor.kind}")
        block, size = sizes[tensor.kind]
        if tensor.offset != place or tensor.elements % block:
            raise _WrongError(f"the tensor {tensor.name!r} does not lie where the one before it ends")
        if (end := place + tensor.elements // block * size) > header.data:
            raise _WrongError(f"it ends before the tensor {tensor.name!r} does")
        place = _aligned(end, header.alignment)


def _aligned(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment


def _check_blocks(header: GgufHeader) -> None:
    numbers = [int(match[1]) for tensor in header.tensors if (match := re.search(r"\bblk\.(\d{1,6})\.", tensor.name))]
    there = max(numbers, default=-1) + 1
    for key, value in header.integers.items():
        if key.endswith("block_count") and value > there:
            raise _WrongError(f"{key} is {value}, but its tensors are those of {there} blocks")


class _Reader:
    """A place in the file. Whatever is taken must be there."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.order = data, 0, "<"

    def header(self) -> GgufHeader:
        if self.skip(4) != b"GGUF":
            raise _WrongError("it does not begin with GGUF")
        version = self.number("I")
        if version & 0xFFFF == 0:  # written on a big-endian machine
            self.order, self.at = ">", 4
            version = self.number("I")
        if version not in _VERSIONS:
            raise _WrongError(f"its version is {version}, known are {' and '.join(map(str, _VERSIONS))}")
        tensors, keys = self.count("tensors", 24), self.count("keys", 13)
        integers: dict[str, int] = {}
        for _ in range(keys):
            key, value = self.text(), self.value(self.number("I"))
            if value is not None:
                integers[key] = value
        found = tuple(self.tensor() for _ in range(tensors))
        if (alignment := integers.get("general.alignment", 32)) < 1:
            raise _WrongError(f"general.alignment is {alignment}")
        return GgufHeader(integers, found, alignment, len(self.data) - _aligned(self.at, alignment))

    def tensor(self) -> GgufTensor:
        name, dims = self.text(), self.number("I")
        if dims > 8:
            raise _WrongError(f"the tensor {name!r} has {dims} dimensions")
        return GgufTensor(name, prod(self.number("Q") for _ in range(dims)), self.number("I"), self.number("Q"))

    def value(self, kind: int, depth: int = 0) -> int | None:
        """Walks over a value; gives it where it is a whole number."""
        if kind in _INTEGERS:
            return self.number(_INTEGERS[kind])
        if kind in _SIZES:
            self.skip(_SIZES[kind])
        elif kind == _STRING:
            self.text()
        elif kind == _ARRAY and depth < _DEEPEST:
            inner = self.number("I")
            length = self.count("values", _SIZES.get(inner, 8))
            if inner in _SIZES:
                self.skip(length * _SIZES[inner])
            else:
                for _ in range(length):
                    self.value(inner, depth + 1)
        else:
            raise _WrongError(f"the type {kind} is unknown" if kind != _ARRAY else "arrays in arrays in arrays")
        return None

    def text(self) -> str:
        return self.skip(self.count("bytes of text", 1)).decode("utf-8", "replace")

    def count(self, what: str, least: int) -> int:
        """A count of things that take at least so many bytes each."""
        number = self.number("Q")
        if number * least > len(self.data) - self.at:
            raise _WrongError(f"it claims {number} {what} at byte {self.at - 8}, more than fit into it")
        return number

    def number(self, form: str) -> int:
        value: int = struct.unpack(self.order + form, self.skip(struct.calcsize(form)))[0]
        return value

    def skip(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise _WrongError(f"it ends at byte {len(self.data)}")
        self.at += size
        return self.data[self.at - size : self.at]
