"""Hugging Face architectures with tiny configs, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from zoo_decoders import DECODERS
from zoo_encoder_decoders import ENCODER_DECODERS
from zoo_encoders import ENCODERS
from zoo_rows import VOCABULARY, Row
from zoo_senses import SENSES

__all__ = ["ARCHITECTURES", "VOCABULARY", "build"]

#: Name -> row.
ARCHITECTURES: Mapping[str, Row] = MappingProxyType(ENCODERS | DECODERS | ENCODER_DECODERS | SENSES)


def build(name: str) -> nn.Module:
    """The model of that name, in the state that its own initialisation leaves."""
    import transformers

    row = ARCHITECTURES[name]
    model: nn.Module = getattr(transformers, row.model)(getattr(transformers, row.config)(**row.sizes))
    return model
