"""Inputs to try an exported file on, and how to run model and file on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeify.export.onnx.interface import Interface, named_tensors
from moeify.runtime.decoder import Decoder

Array = NDArray[Any]
#: The name of a trial, the model's outputs, the file's outputs.
Trial = tuple[str, Callable[[], list[Array]], Callable[[Any], list[Array]]]

#: The name of the trial on the example's own sizes.
EXAMPLE = "the example"
#: Tokens of prefill, then of each step on the cache.
_STEPS = (7, 1, 1, 4)


def decoder_trials(model: nn.Module, interface: Interface) -> Iterator[Trial]:
    """Prefill and steps on the cache, one sequence, and three of which two are padded on the left."""
    for batch in (1, 3):
        ids = _tokens(interface.example[0], batch, sum(_STEPS))
        mask = np.ones((batch, _STEPS[0]), dtype=np.int64)
        for row, padding in enumerate(range(batch)):
            mask[row, : 2 * padding] = 0
        cuts = np.cumsum(_STEPS)[:-1]
        pieces = np.split(ids, cuts, axis=1)
        real = mask.astype(bool)

        def eager(pieces: list[Array] = pieces, mask: Array = mask, real: Array = real) -> list[Array]:
            return _unpadded(_eager_steps(model, interface, pieces, mask), real)

        def exported(session: Any, pieces: list[Array] = pieces, mask: Array = mask, real: Array = real) -> list[Array]:
            decoder = Decoder(session)
            return _unpadded([decoder.step(piece, None if i else mask) for i, piece in enumerate(pieces)], real)

        yield f"prefill and steps, batch {batch}", eager, exported


def _eager_steps(model: nn.Module, interface: Interface, pieces: list[Array], mask: Array) -> list[Array]:
    """The model with the cache that it makes itself."""
    cache, found, whole = None, [], torch.from_numpy(mask[:, :0])
    for i, piece in enumerate(pieces):
        new = torch.from_numpy(mask if i == 0 else np.ones_like(piece))
        whole = torch.cat([whole, new], dim=1)
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(piece), "attention_mask": whole}
        if "position_ids" in interface.inputs:
            inputs["position_ids"] = (whole.cumsum(1) - 1).clamp(min=0)[:, -piece.shape[1] :]
        output = model(**inputs, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(_array(next(iter(named_tensors(output).values()))))
    return found


def _unpadded(outputs: list[Array], real: Array) -> list[Array]:
    """What stands at padding is of no meaning."""
    return [outputs[0][real], *outputs[1:]]


def _tokens(ids: Tensor, batch: int, tokens: int) -> Array:
    """Tokens of the example in another order, [batch, tokens]."""
    flat = ids.flatten().numpy()
    return np.ascontiguousarray(
        np.resize(flat, (batch, tokens)) if batch == 1 else np.resize(np.roll(flat, 1), (batch, tokens))
    )


def flat_trials(interface: Interface, session: Any) -> Iterator[Trial]:
    """The example; another batch; other lengths, where the file leaves them free; padded, where there is a mask of tokens."""
    dims = {value.name: value.shape for value in session.get_inputs()}
    for name, inputs in _flat_inputs(dict(zip(interface.inputs, interface.example)), dims):

        def eager(inputs: dict[str, Tensor] = inputs) -> list[Array]:
            return [_array(tensor) for tensor in interface.module(*inputs.values())]

        def exported(session: Any, inputs: dict[str, Tensor] = inputs) -> list[Array]:
            feeds = {key: tensor.numpy() for key, tensor in inputs.items() if key in dims}
            return list(session.run(None, feeds | interface.implied(inputs)))

        yield name, eager, exported


def _flat_inputs(example: dict[str, Tensor], dims: Mapping[str, list[Any]]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    seen: list[list[torch.Size]] = []
    for name, change in _changes(dims):
        inputs = {key: _resized(tensor, dims.get(key, []), change) for key, tensor in example.items()}
        shapes = [tensor.shape for tensor in inputs.values()]
        if shapes not in seen:
            seen.append(shapes)
            yield name, inputs
    mask = example.get("attention_mask", torch.empty(0))
    if mask.ndim == 2 and not mask.is_floating_point() and mask.shape[1] > 2:
        padded = mask.clone()
        padded[0, -2:] = 0
        yield "padding", example | {"attention_mask": padded}


def _changes(dims: Mapping[str, list[Any]]) -> Iterator[tuple[str, Mapping[str, int]]]:
    """A name, and by how much axes of that name become longer."""
    lengths = {dim for shape in dims.values() for dim in shape[1:] if isinstance(dim, str)}
    yield EXAMPLE, {}
    yield "batch + 1", {"batch": 1}
    yield "batch + 1, length + 3", {"batch": 1} | dict.fromkeys(lengths, 3)
    yield "length - 1", dict.fromkeys(lengths, -1)
    if len(lengths) > 1:
        yield from ((f"{length} + 2", {length: 2}) for length in sorted(lengths))


def _resized(tensor: Tensor, dims: list[Any], change: Mapping[str, int]) -> Tensor:
    """Free axes longer or shorter; the values are the example's own, in another order."""
    for axis, dim in enumerate(dims):
        more = change.get(dim, 0) if isinstance(dim, str) else 0
        if more and tensor.shape[axis] + more > 0:
            size = tensor.shape[axis]
            tensor = tensor.index_select(axis, torch.arange(size + more).flip(0) % size)
    return tensor.contiguous()


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().numpy())
