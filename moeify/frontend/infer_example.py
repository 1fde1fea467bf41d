"""Example inputs of a module that nobody has described: told by its first layer, and by what then runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_BATCH, _TOKENS, _SEED = 2, 16, 0

#: Pixels along each side of an image, frames of a signal, and sizes of a volume: the first that the model takes is used.
#: A layer with a long stride cuts an image into patches; a model of few patches may run on fewer, and mean something else.
_SIDES = (32, 28, 64, 96, 128, 224, 256, 299, 384, 512)
_SIDES_IN_PATCHES = (224, 256, 384, 512, 32, 64, 96, 128)
_PATCH = 8
_FRAMES = (64, 128, 256, 512, 1024, 3000, 16000)
_VOLUMES = (16, 32, 64)

_Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Recurrent = (nn.RNN, nn.LSTM, nn.GRU)
_Typed = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention, nn.Embedding, *_Convolution, *_Recurrent)

#: So many layers, in the order in which they are registered, may be the first one.
_FIRST = 8


def infer_example(model: nn.Module) -> tuple[Tensor, str] | None:
    """One input, and a sentence on what was assumed; None where the model does not tell.

    Layers are tried in the order in which they are registered: an input made for a layer counts where the model runs on it
    and that layer is the first to be called, with this input or a view of it. The input is floats [batch, in] or
    [batch, tokens, in] for nn.Linear and what takes vectors, ids [batch, tokens] for nn.Embedding, and
    [batch, channels, size, ...] for convolutions.
    """
    if not _takes_one_input(model):
        return None
    parameters = list(model.parameters())
    dtype = next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
    device = parameters[0].device if parameters else torch.device("cpu")
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, _Typed)]
    for name, layer in layers[:_FIRST]:
        for x in _possible(layer, model):
            x = x.to(device, dtype if x.is_floating_point() else x.dtype)
            if _first_called(model, x) is layer:
                sort = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
                return x, f"example inputs were assumed: {sort}, as {name or 'it'} ({type(layer).__name__}) takes them"
    return None


def _takes_one_input(model: nn.Module) -> bool:
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return len(needed) == 1 and needed[0] is positional[0] if positional else False


def _possible(layer: nn.Module, model: nn.Module) -> Iterator[Tensor]:
    """As `_inputs`; none for a layer that lacks what its class has, as one out of a file may."""
    try:
        yield from _inputs(layer, model)
    except (AttributeError, TypeError, RuntimeError):
        return


def _inputs(layer: nn.Module, model: nn.Module) -> Iterator[Tensor]:
    """Inputs for the layer, the likeliest first."""
    if isinstance(layer, nn.Embedding):
        yield from (torch.randint(layer.num_embeddings, (_BATCH, tokens), generator=_generator()) for tokens in (_TOKENS, 8, 4))
        return
    shapes = _convolution_shapes(layer) if isinstance(layer, _Convolution) else _vector_shapes(layer, model)
    yield from (torch.randn(_BATCH, *shape, generator=_generator()) for shape in shapes)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)


def _convolution_shapes(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Iterator[tuple[int, ...]]:
    dims = len(layer.kernel_size)
    sides = _SIDES_IN_PATCHES if layer.stride[0] >= _PATCH else _SIDES
    yield from ((layer.in_channels, *(size,) * dims) for size in (_FRAMES, sides, _VOLUMES)[dims - 1])


def _vector_shapes(layer: nn.Module, model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Rows of vectors, and sequences of them; where a layer mixes tokens a sequence is the likelier."""
    values = _width(layer)
    mixes = any(isinstance(module, (nn.MultiheadAttention, *_Recurrent)) for module in model.modules())
    rows, sequences = values, (_TOKENS, *values)
    yield from (sequences, rows) if mixes else (rows, sequences)


def _width(layer: Any) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        return (layer.in_features,)
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return tuple(layer.normalized_shape)
    return (layer.embed_dim if isinstance(layer, nn.MultiheadAttention) else layer.input_size,)


def _first_called(model: nn.Module, x: Tensor) -> nn.Module | None:
    """The first of the typed layers that the model calls on x, where that call gets x or a view of it; None where it fails."""
    first: list[nn.Module | None] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        same = given is not None and given.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        first.append(module if same else None)

    typed = [module for module in model.modules() if isinstance(module, _Typed)]
    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in typed]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(x)
    except Exception:  # what a forward raises on inputs that it is not made for is open
        return None
    finally:
        for handle in handles:
            handle.remove()
    return first[0] if first else None
