"""Safetensors files: a header of names, then plain numbers. Nothing in them can run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors by name, mapped from the file rather than copied. Raises InputError where it is damaged or truncated."""
    check_safetensors(path)
    with _one_line(path):
        return dict(load_file(path))


def count_safetensors(paths: Iterable[Path]) -> tuple[int, int]:
    """How many tensors the files hold, and how many numbers are in them; other files than .safetensors are passed over."""
    tensors = elements = 0
    for path in paths:
        if path.suffix == ".safetensors":
            with _one_line(path), safe_open(path, framework="pt") as file:
                sizes = [prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118 (no mapping)
            tensors, elements = tensors + len(sizes), elements + sum(sizes)
    return tensors, elements


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: is no whole safetensors file ({error}); copy or download it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
