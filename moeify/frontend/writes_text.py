"""Which models can go on with a text by themselves."""

from __future__ import annotations

from torch import nn


def writes_text(model: nn.Module) -> bool:
    """Is it a causal language model of transformers with its head: does each token see only those before it, and are there
    logits of the next one?"""
    from transformers.models.auto import modeling_auto as auto

    names = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    heads = {name for found in names for name in ([found] if isinstance(found, str) else found)}
    config = getattr(model, "config", None)
    masked = getattr(config, "model_type", None) in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return type(model).__name__ in heads and (not masked or bool(getattr(config, "is_decoder", False)))
