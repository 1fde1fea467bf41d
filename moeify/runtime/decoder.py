"""Greedy generation with an exported decoder: one file for prefill and decode steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.errors import InputError

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

    Array = NDArray[Any]

_PAST = "past_key_values."
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True, eq=False)
class Cache:
    """What a decoder has read: keys and values by layer, [batch, heads, tokens, head_dim], and the mask [batch, tokens]."""

    values: tuple[Any, ...]
    mask: Array


class Decoder:
    """A session with its key-value cache. `step` runs the model on the next tokens of every sequence of the batch.

    Raises InputError for a file that is no decoder with a cache.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._inputs = {value.name: value for value in session.get_inputs()}
        self._outputs = [value.name for value in session.get_outputs()]
        self._past = [name for name in self._inputs if name.startswith(_PAST)]
        if not self._past or not {"input_ids", "attention_mask"} <= set(self._inputs):
            raise InputError("the ONNX file is no decoder with a cache: it lacks input_ids, attention_mask or past_key_values")
        #: Steps replace it and change nothing in it: kept, and set again, it takes the decoder back to where it was.
        self.cache = Cache((), np.zeros((0, 0), dtype=np.int64))

    def step(self, ids: Array, mask: Array | None = None) -> Array:
        """Logits [batch, tokens, vocabulary] of ids [batch, tokens].

        mask [batch, tokens]: given with the first tokens of new sequences (which drops the cache), 0 for padding on the left.
        """
        ids = np.asarray(ids, dtype=np.int64)
        past = self.cache if mask is None and self.cache.values else self._empty(len(ids))
        new = np.ones_like(ids) if mask is None else np.asarray(mask, dtype=np.int64)
        whole = np.concatenate([past.mask, new], axis=1)
        # The cache goes round as it is, without a copy into numpy.
        found = self._session.run_with_ort_values(self._outputs, self._feeds(ids, whole, past))
        self.cache = Cache(tuple(found[1:]), whole)
        return np.asarray(found[0].numpy())

    def generate(self, ids: Array, new_tokens: int, mask: Array | None = None, end: int | None = None) -> Array:
        """The most likely continuation [batch, up to new_tokens] of ids [batch, tokens]; mask as in `step`.

        end: the token that ends a sequence; it is repeated until all have ended.
        """
        logits = self.step(ids, np.ones_like(ids) if mask is None else mask)
        found: list[Array] = []
        ended = np.zeros(len(ids), dtype=bool)
        while len(found) < new_tokens:
            token = logits[:, -1].argmax(axis=-1).astype(np.int64)
            if end is not None:
                token = np.where(ended, end, token)
                ended |= token == end
            found.append(token)
            if ended.all() or len(found) == new_tokens:
                break
            logits = self.step(token[:, None])
        return np.stack(found, axis=1) if found else np.zeros((len(ids), 0), dtype=np.int64)

    def first(self, ids: Array, mask: Array) -> dict[str, Any]:
        """What `step` feeds the session with the first tokens of new sequences; the cache stays as it is."""
        return self._feeds(np.asarray(ids, dtype=np.int64), np.asarray(mask, dtype=np.int64), self._empty(len(ids)))

    def _feeds(self, ids: Array, mask: Array, past: Cache) -> dict[str, Any]:
        """mask: of what was read and of ids."""
        feeds = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self._inputs:
            feeds["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        return {name: _value(array) for name, array in feeds.items()} | dict(zip(self._past, past.values))

    def _empty(self, batch: int) -> Cache:
        """Of sequences of which nothing was read."""

        def values(name: str) -> Any:
            _, heads, _, width = self._inputs[name].shape
            return _value(np.zeros((batch, heads, 0, width), dtype=_TYPES[self._inputs[name].type]))

        return Cache(tuple(map(values, self._past)), np.zeros((batch, 0), dtype=np.int64))


def _value(array: Array) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
