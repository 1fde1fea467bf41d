"""Other checkpoints of the model that is being converted: opened by path, held to its names and shapes, read by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from moeify.errors import InputError
from moeify.frontend.load_checks import is_finite, some
from moeify.frontend.load_huggingface import load_gguf, load_huggingface
from moeify.frontend.load_huggingface_files import weight_files
from moeify.frontend.load_refusals import refusal
from moeify.frontend.load_safetensors import check_safetensors, read_safetensors
from moeify.frontend.load_saved import mapped_shapes, read_saved
from moeify.frontend.load_state_dict import state_dict_of
from moeify.frontend.loaded import file_digest
from moeify.frontend.sniff import sniff
from moeify.ir.feed_forward import ReadTensor


class OtherCheckpoints:
    """Each is opened once. What a safetensors file holds is mapped, not copied; nothing of any file is run.

    digests: path as it was given -> file -> sha256, of those opened so far.
    """

    def __init__(self, base: nn.Module) -> None:
        # Shapes and ties alone: the base's weights must not live on here once they are spliced out of it.
        own = {name: value for name, value in base.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
        self._shapes = {name: value.shape for name, value in own.items()}
        tied: dict[int, list[str]] = {}
        for name, value in own.items():
            tied.setdefault(id(value), []).append(name)
        self._tied = tuple(tied.values())
        self._dtype = next((p.dtype for p in base.parameters() if p.is_floating_point()), torch.float32)
        self._class = type(base).__name__
        self._opened: dict[str, ReadTensor] = {}
        self.digests: dict[str, dict[str, str]] = {}

    def open(self, path: str) -> ReadTensor:
        """A function that gives a tensor by the name of the base model's parameter.

        Raises InputError where the path cannot be read, or does not hold the parameters of the base model in their shapes.
        """
        if path not in self._opened:
            place = Path(path).expanduser()
            state, self.digests[path] = _read(place, self._dtype)
            self._opened[path] = self._checked(place, state)
        return self._opened[path]

    def _checked(self, path: Path, state: Mapping[str, Tensor]) -> ReadTensor:
        names = {name: next((n for n in group if n in state), None) for group in self._tied for name in group}
        missing = [name for name, found in names.items() if found is None]
        unfit = [n for n, f in names.items() if f is not None and state[f].shape != self._shapes[n]]
        if missing or unfit:
            faults = [f"missing: {some(missing)}"] if missing else []
            faults += [f"of another shape: {some(unfit)}"] if unfit else []
            raise InputError(f"{path}: is no checkpoint of the same {self._class} ({'; '.join(faults)})")

        def read(name: str) -> Tensor:
            found = state[names.get(name) or name]
            if not is_finite(found.detach()):
                raise InputError(f"{path}: the tensor {name} holds NaN or infinite values; repair or export it again")
            return found

        return read


def check_same_shapes(base: object, paths: Iterable[str]) -> None:
    """Before any weight is loaded: raises InputError for paths that are not there, and, where base and checkpoint tell shapes
    without their weights, for tensors of one name and two shapes."""
    others = {path: _shapes(Path(path).expanduser()) for path in paths}
    own = _shapes(Path(base).expanduser()) if others and isinstance(base, str | Path) else None
    for path, found in others.items():
        if own is None or found is None:
            continue
        for name in sorted(own.keys() & found.keys()):
            if own[name] != found[name]:
                raise InputError(
                    f"{path}: is no checkpoint of the same model as {base}: {name} is {found[name]} here and {own[name]} there"
                )


def _shapes(path: Path) -> dict[str, list[int]] | None:
    """Shape by name, from headers alone; None where only loading tells."""
    kind = sniff(path)
    if kind == "torch":
        return mapped_shapes(path)
    if kind not in ("huggingface", "safetensors"):
        return None
    files = weight_files(path) if kind == "huggingface" else [path]
    found: dict[str, list[int]] = {}
    for file in files:
        names = check_safetensors(file)
        with safe_open(file, framework="pt") as opened:
            found |= {name: list(opened.get_slice(name).get_shape()) for name in names}
    return found or None


def _read(path: Path, dtype: torch.dtype) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    kind = sniff(path)
    if kind in ("torch", "pickle", "safetensors"):
        found = read_safetensors(path) if kind == "safetensors" else read_saved(path, kind)
        state = found.state_dict() if isinstance(found, nn.Module) else state_dict_of(found, path)
        return state, {path.name: file_digest(path)}
    if kind not in ("huggingface", "gguf"):
        raise refusal(path, kind)
    loaded = load_huggingface(path, dtype) if kind == "huggingface" else load_gguf(path, dtype)
    return loaded.model.state_dict(), dict(loaded.source.digests)
