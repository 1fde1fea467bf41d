"""One forward pass of an exported model as a call, to be timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.errors import InputError
from moeify.runtime.decoder import Decoder

if TYPE_CHECKING:
    import onnxruntime

#: numpy types of the inputs that ONNX files of ours have.
_TYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(int64)": np.int64,
    "tensor(int32)": np.int32, "tensor(bool)": np.bool_,
}  # fmt: skip


def forward_call(session: onnxruntime.InferenceSession, tokens: int) -> Callable[[None], object]:
    """Runs the file on one sequence of so many tokens, from an empty cache where it has one.

    Free sizes become 1 and the number of tokens (batch and sequence), or that number where only one is free (rows); inputs are
    what a seed gives, ids below the number of logits. Raises InputError for an input of a type that is not known.
    """
    names = {value.name for value in session.get_inputs()}
    if {"input_ids", "attention_mask"} <= names and any(name.startswith("past_key_values.") for name in names):
        decoder, ids = Decoder(session), _ids(session, (1, tokens))
        return lambda _: decoder.step(ids, np.ones_like(ids))
    feeds = {value.name: _feed(session, value, tokens) for value in session.get_inputs()}
    return lambda _: session.run(None, feeds)


def _feed(session: onnxruntime.InferenceSession, value: Any, tokens: int) -> np.ndarray[Any, Any]:
    if value.type not in _TYPES:
        raise InputError(f"the ONNX file's input {value.name} is a {value.type}, which cannot be made up to time it")
    free = [place for place, size in enumerate(value.shape) if not isinstance(size, int)]
    shape = [size if isinstance(size, int) else 1 for size in value.shape]
    if len(free) > 1 or (free and len(shape) < 3):
        shape[free[-1]] = tokens
    if np.issubdtype(_TYPES[value.type], np.floating):
        return np.random.default_rng(0).standard_normal(shape).astype(_TYPES[value.type])
    if "mask" in value.name:
        return np.ones(shape, dtype=_TYPES[value.type])
    return _ids(session, tuple(shape)).astype(_TYPES[value.type])


def _ids(session: onnxruntime.InferenceSession, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    sizes = session.get_outputs()[0].shape
    known = sizes[-1] if sizes and isinstance(sizes[-1], int) else 2
    return np.random.default_rng(0).integers(0, known, shape, dtype=np.int64)
