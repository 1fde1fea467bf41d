"""Do config and weights belong together? A wrong number in a config would take all memory, or for ever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from moeify.errors import InputError

#: Names under which configs hold a number of layers.
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
           "num_encoder_layers")  # fmt: skip

#: As many layers may share their weights (ALBERT has up to 12), whatever the number of tensors.
_SHARED = 100


def check_layers(numbers: Mapping[str, Any], tensors: int, where: str) -> None:
    """Raises InputError for more layers than there are tensors. numbers: of the config, by name."""
    for key, value in numbers.items():
        if isinstance(value, Mapping):
            check_layers(value, tensors, where)
        elif key in _LAYERS and isinstance(value, int) and value > max(tensors, _SHARED):
            raise InputError(f"{where}: {key} is {value}, but there are only {tensors} tensors; mend or download it again")


def check_parameters(outline: nn.Module, elements: int, where: str) -> None:
    """Raises InputError where the model, of which values are not needed, has more than twice as many parameters as the weights
    have numbers."""
    wanted = sum(parameter.numel() for parameter in outline.parameters())
    if wanted > 2 * elements + 1_000_000:
        raise InputError(
            f"{where}: describes a {type(outline).__name__} of {wanted:,} parameters, but the weights are {elements:,} "
            "numbers; mend it or download it again"
        )


def check_floats(model: nn.Module, others: Mapping[str, str], where: str) -> None:
    """Raises InputError for a parameter that the files hold as something else than floats. others: tensor -> its type there."""
    for name, parameter in model.named_parameters():
        kind = next(
            (kind for stored, kind in others.items() if f".{name}".endswith(f".{stored}") or stored.endswith(f".{name}")), None
        )
        if kind is not None and parameter.is_floating_point():
            raise InputError(f"{where}: the tensor {name} holds {kind}, not floats; dequantize the model or export it again")
