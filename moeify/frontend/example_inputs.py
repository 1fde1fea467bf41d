"""One batch of random inputs to trace a transformers model with, by what its config says."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from moeify.errors import InputError
from moeify.ir.model_graph import Batch

#: Samples of sound: some twenty frames of wav2vec 2.0, whose convolutions stride over 320.
_SAMPLES = 6400


def example_inputs(
    model: nn.Module, tokenizer: Any | None = None, *, batch: int = 2, sequence: int = 16, seed: int = 0
) -> Batch:
    """Keyword arguments for one forward of the model; the same for the same arguments.

    input_ids [batch, sequence], and by kind of model attention_mask, decoder_input_ids, pixel_values [batch, channels, height,
    width], input_features [batch, mel bins, frames] or input_values [batch, samples]. No id is a special token.

    Raises InputError where the model does not tell its inputs.
    """
    config = getattr(model, "config", None)
    wanted = getattr(model, "main_input_name", None)
    if config is None or not isinstance(wanted, str):
        raise needs_example(model)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    if wanted == "pixel_values" or _wants_both(model):
        found["pixel_values"] = torch.randn(batch, *_image_shape(config, model), generator=generator)
    if wanted == "input_features":
        found["input_features"] = torch.randn(batch, *_feature_shape(config, model), generator=generator)
    if wanted == "input_values":
        found["input_values"] = torch.randn(batch, *_sound_shape(config), generator=generator)
    if wanted == "input_ids":
        found["input_ids"] = _ids(model, tokenizer, batch, sequence, generator)
        if getattr(config, "is_encoder_decoder", False) or not _is_causal(model):
            found["attention_mask"] = torch.ones_like(found["input_ids"])
    if not found:
        raise needs_example(model)
    if getattr(config, "is_encoder_decoder", False):
        found["decoder_input_ids"] = _ids(model, tokenizer, batch, sequence, generator)
    return _placed(found, model)


def needs_example(model: nn.Module) -> InputError:
    """The error for a model whose inputs nobody has told."""
    return InputError(
        f"the inputs of {type(model).__name__} are not known: give one batch, a tuple of arguments or a dict of keyword "
        "arguments (example=..., or --example with a .pt, .npz or .safetensors file or pkg.mod:callable)"
    )


def _ids(model: nn.Module, tokenizer: Any | None, batch: int, sequence: int, generator: torch.Generator) -> Tensor:
    """Token ids [batch, sequence]: random, no special ones; an encoder-decoder's end with its end-of-sequence id."""
    config: Any = model.config
    text = config.get_text_config()
    special = set(_numbers(getattr(text, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")))
    if tokenizer is not None:
        special |= set(tokenizer.all_special_ids)
    known = torch.tensor([i for i in range(_vocabulary(model, text)) if i not in special] or [0])
    # Learned positions: RoBERTa and its kin lose a few of them to an offset past the padding id.
    positions = next(_numbers(getattr(text, n, None) for n in ("max_position_embeddings", "n_positions")), sequence + 4)
    length = min(sequence, max(positions - 4, 2)) if positions > 0 else sequence
    ids = known[torch.randint(len(known), (batch, length), generator=generator)]
    end = next(_numbers([getattr(text, "eos_token_id", None)]), None)
    if getattr(config, "is_encoder_decoder", False) and end is not None:
        ids[:, -1] = end
    return ids


def _vocabulary(model: Any, text: Any) -> int:
    size = getattr(text, "vocab_size", None)
    if isinstance(size, int) and size > 0:
        return size
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if isinstance(embedding, nn.Embedding):
        return embedding.num_embeddings
    raise needs_example(model)


def _numbers(values: Iterable[Any]) -> Any:
    """The integers among the values; of a list its members."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _numbers(value)
        elif isinstance(value, int):
            yield value


def _is_causal(model: nn.Module) -> bool:
    """Does a token see only those before it? Then no mask is needed."""
    from transformers.models.auto import modeling_auto as auto

    config: Any = model.config
    kind = config.model_type
    if getattr(config, "is_decoder", False):
        return True
    return kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _wants_both(model: nn.Module) -> bool:
    """Text and picture together, as CLIP; a language model that may see pictures traces on text alone."""
    return hasattr(model, "get_image_features") and hasattr(model, "get_text_features")


def _image_shape(config: Any, model: nn.Module) -> tuple[int, ...]:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels = getattr(vision, "num_channels", None) or 3
    frames = getattr(vision, "num_frames", None)
    return (channels, height, width) if frames is None else (frames, channels, height, width)


def _feature_shape(config: Any, model: nn.Module) -> tuple[int, ...]:
    bins, positions = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    if isinstance(bins, int) and isinstance(positions, int):  # Whisper takes exactly twice its positions
        return (bins, 2 * positions)
    bins = getattr(config, "feature_projection_input_dim", None) or getattr(config, "input_feat_per_channel", None) or bins
    if not isinstance(bins, int):
        raise needs_example(model)
    return (64, bins)


def _sound_shape(config: Any) -> tuple[int, ...]:
    bins, length = getattr(config, "num_mel_bins", None), getattr(config, "max_length", None)
    return (length, bins) if isinstance(bins, int) and isinstance(length, int) else (_SAMPLES,)


def _placed(found: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """On the model's device, numbers in the model's dtype; only what its forward takes."""
    takes = inspect.signature(model.forward).parameters
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return {
        name: value.to(first.device, first.dtype if value.is_floating_point() else value.dtype)
        for name, value in found.items()
        if name in takes
    }
