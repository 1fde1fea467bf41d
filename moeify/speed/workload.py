"""What a run is fed with, the same for a file in ONNX Runtime and for the eager model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moeify.errors import UsageError, one_line
from moeify.runtime.decoder import Decoder

if TYPE_CHECKING:
    import onnxruntime

Array = NDArray[Any]
#: Inputs by name.
Feeds = Mapping[str, Array]

_IDS = ("input_ids", "decoder_input_ids")


@dataclass(frozen=True)
class Place:
    """A point that is measured. past: the tokens in the cache before the run; None: it starts without one (a prefill, or a
    model that has none)."""

    tokens: int
    past: int | None = None

    def __str__(self) -> str:
        return str(self.tokens) if self.past is None else f"{self.tokens} after {self.past}"


class Inputs(Protocol):
    """Makes the inputs of runs. cached: ids for a decoder with its cache. unit: what there may be more or fewer of."""

    @property
    def cached(self) -> bool: ...

    @property
    def unit(self) -> str: ...

    def draw(self, tokens: int, rng: np.random.Generator) -> Feeds: ...


@dataclass(frozen=True, eq=False)
class Workload:
    """like: an example of each input, by its name in the file. dims: of the file's inputs; a free one is a name. cached: a
    decoder with its cache. vocabulary: ids are drawn below it. text: ids [tokens] that are read in pieces instead; None: drawn.
    """

    like: Mapping[str, Array]
    dims: Mapping[str, Sequence[int | str]]
    cached: bool
    vocabulary: int | None = None
    text: Array | None = None

    @property
    def unit(self) -> str:
        """What the file is given more or fewer of: tokens of one sequence, or rows of its inputs."""
        return "tokens" if self.cached or self._sequences else "rows"

    def draw(self, tokens: int, rng: np.random.Generator) -> dict[str, Array]:
        """New values for every input, so many tokens or rows. Of a decoder with a cache: the ids [1, tokens] alone."""
        if self.cached:
            return {"input_ids": self._ids((1, tokens), rng)}
        lengths = dict.fromkeys(self._sequences, tokens)
        rows = 1 if lengths else tokens

        def size(axis: int, dim: int | str, own: int) -> int:
            return lengths.get(dim, rows if axis == 0 else own) if isinstance(dim, str) else dim

        found = {}
        for name, value in self.like.items():
            dims = self.dims.get(name, value.shape)
            found[name] = self._values(name, value, tuple(map(size, range(value.ndim), dims, value.shape)), rng)
        return found

    @property
    def _sequences(self) -> list[str]:
        """The free axes that tokens stand on: the second one of inputs of whole numbers."""
        whole = (self.dims[name] for name, value in self.like.items() if value.dtype.kind == "i" and name in self.dims)
        return [dims[1] for dims in whole if len(dims) == 2 and isinstance(dims[1], str)]

    def _values(self, name: str, like: Array, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        if name in _IDS and self.vocabulary is not None:
            return self._ids(shape, rng)
        if "mask" in name:
            return np.ones(shape, dtype=like.dtype)
        return np.ascontiguousarray(rng.choice(like.reshape(-1), shape))  # values that the model takes, in a new order

    def _ids(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        count = int(np.prod(shape))
        if self.text is None:
            return rng.integers(0, self.vocabulary or 1, shape, dtype=np.int64)
        start = int(rng.integers(0, len(self.text)))
        return np.take(self.text, np.arange(start, start + count), mode="wrap").astype(np.int64).reshape(shape)


def caller(
    session: onnxruntime.InferenceSession, *, cached: bool, place: Place, past: Array | None = None
) -> Callable[[Feeds], object]:
    """Runs a file on what `draw` gives for place.tokens. past: ids [1, place.past] that a decoder reads first.

    Raises UsageError for a place that it cannot be run at.
    """
    if not cached:
        names = {value.name for value in session.get_inputs()}
        return _told(lambda feeds: session.run(None, {n: v for n, v in feeds.items() if n in names}), place)
    decoder = Decoder(session)
    if past is None:
        return _told(lambda feeds: decoder.step(feeds["input_ids"], np.ones_like(feeds["input_ids"])), place)
    _told(lambda ids: decoder.step(ids, np.ones_like(ids)), place)(past)
    held = decoder.cache

    def step(feeds: Feeds) -> object:
        decoder.cache = held
        return decoder.step(feeds["input_ids"])

    return _told(step, place)


def _told(call: Callable[[Any], object], place: Place) -> Callable[[Any], object]:
    def told(feeds: Any) -> object:
        try:
            return call(feeds)
        except Exception as error:  # onnxruntime's exceptions have no common class of their own
            raise UsageError(f"ONNX Runtime cannot run {place} tokens: {one_line(str(error))}; ask for fewer") from error

    return told
