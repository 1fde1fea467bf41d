"""The dense model that a stock Mixture-of-Experts model is, apart from its experts: the way back of `families`."""

from __future__ import annotations

from typing import Any

from moeify.errors import ConversionError
from moeify.export.hf.families import FAMILIES, Fields
from moeify.export.hf.making import Making

#: Fields of a config that say what it is, and not what it computes.
OWN = frozenset({"model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "auto_map"})

#: Classes of transformers that can be read.
KNOWN = tuple(sorted({family.target for family in FAMILIES}))


def dense_config(fields: Fields, made: Making | None) -> Any:
    """The config of the dense model with the attention of a stock model of those fields. made: what the checkpoint remembers.

    Raises ConversionError with the reason where there is no such dense model.
    """
    from transformers import AutoConfig

    if (reason := _unlike(fields)) is not None:
        raise ConversionError(f"a {fields.get('model_type')} model is not read: {reason}")
    kind = _usual(fields) if made is None else made.model_type
    known = AutoConfig.for_model(kind).to_dict()
    given = {name: value for name, value in fields.items() if name in known and name not in OWN}
    if "head_dim" in known:
        given["head_dim"] = fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"]
    if kind == "mistral":
        given["sliding_window"] = fields.get("sliding_window")
    if kind == "qwen3" and fields["model_type"] == "qwen3_moe":
        given |= {"use_sliding_window": False, "sliding_window": None}
    if made is not None:
        given["intermediate_size"] = made.neurons
    return AutoConfig.for_model(kind, **given)


def _unlike(fields: Fields) -> str | None:
    """What no dense model has."""
    kind = fields.get("model_type")
    if kind not in KNOWN:
        return f"known are {', '.join(KNOWN)}"
    if kind == "qwen3_moe" and fields.get("use_sliding_window") and fields.get("sliding_window"):
        return "its layers attend to a window, each the same"
    if kind in ("glm4_moe", "dots1") and (fields.get("n_group") or 1) > 1:
        return "its experts are chosen by groups"
    if kind == "glm4_moe":
        rotary = (fields.get("rope_parameters") or {}).get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0))
        if rotary != 1.0 or fields.get("attention_bias") or fields.get("use_qk_norm"):
            return "its attention turns a part of each head, or has biases or norms, as no dense model does"
    return None


def _usual(fields: Fields) -> str:
    """The dense model of the same house."""
    if fields["model_type"] == "qwen2_moe":
        return "qwen2" if fields.get("qkv_bias", True) else "llama"
    houses = {"mixtral": "mistral", "granitemoe": "granite", "granitemoeshared": "granite", "glm4_moe": "llama"}
    return houses.get(fields["model_type"], "qwen3")
