"""The form of a row in the tables of Hugging Face architectures, and what the rows share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

#: path, kind, activation, hidden, neurons
Site = tuple[str, str, str, int, int]

#: ids: token ids and their mask. both: ids of an encoder and of a decoder. pixels: a picture. speech: features of sound for
#: an encoder, ids for its decoder. sound: samples. text and picture: as CLIP.
Inputs = Literal["ids", "both", "pixels", "speech", "sound", "text and picture"]

VOCABULARY, HIDDEN, NEURONS = 40, 16, 48


@dataclass(frozen=True)
class Row:
    """An architecture with a tiny config: its classes in transformers, its inputs, the sites that are to be found in execution
    order, the way of rewriting them. text: `generate` makes text with it."""

    model: str
    config: str
    sizes: dict[str, Any]
    inputs: Inputs
    sites: list[Site] = field(default_factory=list)
    way: str = ""
    text: bool = False


def layers(pattern: str, kind: str, activation: str, count: int = 2) -> list[Site]:
    """The same site in each of `count` layers."""
    return [(pattern.format(i), kind, activation, HIDDEN, NEURONS) for i in range(count)]


#: The usual names of sizes.
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": NEURONS, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
