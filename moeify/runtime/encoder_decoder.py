"""Greedy generation with an exported encoder-decoder: the whole graph runs again for every new token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.errors import InputError

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

    Array = NDArray[Any]

_IDS, _DECODER, _MASK = "input_ids", "decoder_input_ids", "attention_mask"


class EncoderDecoder:
    """A session of both stacks in one graph, without a cache. Raises InputError for a file that is none."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._inputs = {value.name for value in session.get_inputs()}
        if _DECODER not in self._inputs:
            raise InputError("the ONNX file is no encoder-decoder: it lacks decoder_input_ids")

    def logits(self, inputs: Mapping[str, Array], tokens: Array) -> Array:
        """[batch, tokens, vocabulary] for tokens [batch, tokens] of the decoder; inputs: the encoder's, by name (input_ids or
        input_features, attention_mask [batch, sequence]: ones where it is left out)."""
        feeds = {**inputs, _DECODER: np.asarray(tokens, dtype=np.int64)}
        if _MASK in self._inputs and _MASK not in feeds and _IDS in feeds:
            feeds[_MASK] = np.ones_like(feeds[_IDS])
        found: Array = self._session.run(None, {name: value for name, value in feeds.items() if name in self._inputs})[0]
        return found

    def generate(self, inputs: Mapping[str, Array], new_tokens: int, *, start: int, end: int | None = None) -> Array:
        """The most likely text [batch, up to new_tokens]; inputs as in `logits`.

        start: the token that the decoder starts with (decoder_start_token_id). end: the token that ends a sequence; it is
        repeated until all have ended.
        """
        batch = len(next(iter(inputs.values())))
        tokens = np.full((batch, 1), start, dtype=np.int64)
        ended = np.zeros(batch, dtype=bool)
        for _ in range(new_tokens):
            token = self.logits(inputs, tokens)[:, -1].argmax(axis=-1).astype(np.int64)
            if end is not None:
                token = np.where(ended, end, token)
                ended |= token == end
            tokens = np.concatenate([tokens, token[:, None]], axis=1)
            if ended.all():
                break
        return tokens[:, 1:]
