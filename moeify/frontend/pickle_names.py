"""Which classes and functions a pickle names: its opcodes are read, none is carried out."""

from __future__ import annotations

import io
import mmap
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from torch import _weights_only_unpickler as unpickler

from moeify.frontend.torch_nn import functions, module_classes

#: Opcodes whose argument is a text that a later STACK_GLOBAL may take.
_TEXTS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"})

#: Python 2's names, which torch.save writes too.
_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


def foreign_names(path: Path) -> list[str]:
    """The names in a file of torch.save that stand neither for tensors nor for torch.nn, sorted; those before any damage."""
    known = {*unpickler._get_allowed_globals(), *module_classes(), *functions()}
    return sorted(set(_names_in_file(path)) - known)


def _names_in_file(path: Path) -> Iterator[str]:
    # Mapped: of a length that the file only claims, no more is read than there is.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if mapped[:2] != b"PK":  # a pickle may end as a zip does
            yield from _names(cast(IO[bytes], mapped))
            return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                yield from _names(io.BytesIO(archive.read(name)))


def _names(file: IO[bytes]) -> Iterator[str]:
    """Of all pickles that stand one behind the other; what follows the last one is not looked at."""
    try:
        while True:
            yield from _names_in_pickle(file)
    except (ValueError, IndexError, EOFError, UnicodeDecodeError, OverflowError):
        return  # the numbers of the tensors, the end of the file, or damage


def _names_in_pickle(file: IO[bytes]) -> Iterator[str]:
    texts: list[str] = []
    memo: dict[int, str | None] = {}
    last: str | None = None  # the text that the opcode before has put on the stack
    for code, argument, _ in pickletools.genops(file):
        if code.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            yield f"{_MODULES.get(module, module)}.{name}"
        elif code.name == "STACK_GLOBAL" and len(texts) > 1:
            yield f"{_MODULES.get(texts[-2], texts[-2])}.{texts[-1]}"
        if code.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if argument is None else int(argument)] = last
            continue
        last = str(argument) if code.name in _TEXTS else None
        if code.name in ("GET", "BINGET", "LONG_BINGET"):
            last = memo.get(int(argument or 0))
        if last is not None:
            texts.append(last)
