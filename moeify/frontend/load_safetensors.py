"""Safetensors files: a header of names, then plain numbers. Nothing in them can run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from moeify.errors import InputError


def check_safetensors(path: Path) -> tuple[str, ...]:
    """The names of its tensors; only the header is read. Raises InputError where it is damaged or truncated."""
    with _one_line(path), safe_open(path, framework="pt") as file:
        names = tuple(file.keys())
    if not names:
        raise InputError(f"{path}: holds no tensor; give a file with weights")
    return names


def read_safetensors(path: Path, *, may_be_empty: bool = False) -> dict[str, Tensor]:
    """All tensors by name, mapped from the file rather than copied. Raises InputError where it is damaged or truncated, or
    holds none (without `may_be_empty`)."""
    if not may_be_empty:
        check_safetensors(path)
    with _one_line(path):
        return dict(load_file(path))


@dataclass(frozen=True)
class Contents:
    """tensors: how many. elements: the numbers in all of them. others: name -> type of those that are no floats. floats: the
    types of the rest, as safetensors names them ("F32", "BF16")."""

    tensors: int
    elements: int
    others: Mapping[str, str]
    floats: frozenset[str] = frozenset()


def safetensors_contents(paths: Iterable[Path]) -> Contents:
    """What the headers of the .safetensors files among the paths say. Raises InputError where one is damaged."""
    tensors, elements, others, floats = 0, 0, {}, set()
    for path in (path for path in paths if path.suffix == ".safetensors"):
        with _one_line(path), safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                part = file.get_slice(name)
                tensors, elements = tensors + 1, elements + prod(part.get_shape())
                if "F" not in (kind := part.get_dtype()):
                    others[name] = kind
                else:
                    floats.add(kind)
    return Contents(tensors, elements, others, frozenset(floats))


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: is no whole safetensors file ({error}); copy or download it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
