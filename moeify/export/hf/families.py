"""Which stock class holds which model: one table, in order of preference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moeify.errors import ConversionError
from moeify.export.hf.shape import StockShape

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """A stock class. target: its model_type; sources: of the dense models whose attention it has.

    gates: (rule, normalised) that it computes as they are; gates of 1 every class comes near to (weights.FLAT).
    shared: widths of a shared expert that it holds: none, any, or multiples of the routed ones'. dense: which layers may stay
    dense. unlike: what the config of a source lacks to fit, or None. fields: of the config, beside those that both have.
    scaled_by_config: a field scales the sum of the gates.
    """

    target: str
    sources: tuple[str, ...]
    gates: tuple[tuple[str, bool], ...]
    shared: Literal["none", "any", "multiple"]
    dense: Literal["none", "any", "first"]
    unlike: Callable[[Fields], str | None]
    fields: Callable[[StockShape, Fields], dict[str, Any]]
    scaled_by_config: bool = False

    def refusal(self, source: Fields, shape: StockShape, dense: tuple[int, ...]) -> str | None:
        """Why it cannot hold that; None where it can. dense: indices of the layers without experts."""
        if (reason := self.unlike(source)) is not None:
            return reason
        if shape.gates != "one" and (shape.gates, shape.normalize) not in self.gates:
            return "other gates"
        if shape.shared and self.shared == "none":
            return "no shared expert"
        if self.shared == "multiple" and (not shape.shared or shape.shared % shape.width):
            return f"a shared expert of a multiple of {shape.width} neurons"
        if dense and self.dense == "none":
            return "experts in every layer"
        if self.dense == "first" and dense != tuple(range(len(dense))):
            return "experts in every layer from one on"
        return None


def families_of(source: Fields) -> list[Family]:
    """Those that have the attention of such a model. Raises ConversionError where there are none."""
    kind = source.get("model_type")
    found = [family for family in FAMILIES if kind in family.sources]
    if not found:
        known = sorted({name for family in FAMILIES for name in family.sources})
        raise ConversionError(
            f"no stock Mixture-of-Experts class computes what a {kind} model does; known are {', '.join(known)}"
        )
    return found


def family_of(source: Fields, shape: StockShape, dense: tuple[int, ...]) -> Family:
    """The first that holds the model. Raises ConversionError with what speaks against each."""
    reasons = []
    for family in families_of(source):
        if (reason := family.refusal(source, shape, dense)) is None:
            return family
        reasons.append(f"{family.target} has {reason}")
    where = f", layers {', '.join(map(str, dense))} dense" if dense else ""
    raise ConversionError(f"no stock class of a {source['model_type']} model holds {shape}{where}: {'; '.join(reasons)}")


def _windows(source: Fields) -> str | None:
    return "attention to all tokens alone" if source.get("sliding_window") else None


def _biases(source: Fields) -> str | None:
    return "no biases in attention" if source.get("attention_bias") else None


def _either(source: Fields) -> str | None:
    return _biases(source) or _windows(source)


def _unless_qwen2(source: Fields) -> str | None:
    return None if source["model_type"] == "qwen2" else _either(source)


def _one_window(source: Fields) -> str | None:
    return "the same window in all layers" if source.get("use_sliding_window") else None


def _never(source: Fields) -> str | None:
    return None


def _head(source: Fields) -> int:
    """Width of a head of attention: not all classes have a field for it by default, but all read one."""
    return int(source.get("head_dim") or source["hidden_size"] // source["num_attention_heads"])


def _local(shape: StockShape, source: Fields) -> dict[str, Any]:
    """As Mixtral names them; the others' names follow."""
    return {
        "num_local_experts": shape.experts, "num_experts_per_tok": shape.top_k, "intermediate_size": shape.width,
    }  # fmt: skip


def _mixtral(shape: StockShape, source: Fields) -> dict[str, Any]:
    return _local(shape, source) | {"sliding_window": source.get("sliding_window")}


def _granite(shape: StockShape, source: Fields) -> dict[str, Any]:
    head = _head(source)
    ones = {"embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": head**-0.5}
    own = ones if source["model_type"] != "granite" else {}
    shared = {"shared_intermediate_size": shape.shared} if shape.shared else {}
    return _local(shape, source) | own | shared | {"head_dim": head}


def _qwen(shape: StockShape, source: Fields) -> dict[str, Any]:
    return {
        "num_experts": shape.experts, "num_experts_per_tok": shape.top_k, "moe_intermediate_size": shape.width,
        "norm_topk_prob": shape.normalize or shape.gates == "one", "decoder_sparse_step": 1, "head_dim": _head(source),
    }  # fmt: skip


#: Qwen2-MoE always has a shared expert: where the model has none, one of so many neurons is there, and all zeros.
IDLE_SHARED = 16


def _qwen2(shape: StockShape, source: Fields) -> dict[str, Any]:
    own = {"qkv_bias": source["model_type"] == "qwen2", "shared_expert_intermediate_size": shape.shared or IDLE_SHARED}
    alike = {} if source["model_type"] == "qwen2" else {"use_sliding_window": False, "sliding_window": None}
    return _qwen(shape, source) | own | alike


def _deepseek(shape: StockShape, source: Fields) -> dict[str, Any]:
    """As DeepSeek-V3 names them, whose router GLM-4 and dots took over."""
    flat = shape.gates == "one"
    return {
        "n_routed_experts": shape.experts, "num_experts_per_tok": shape.top_k, "moe_intermediate_size": shape.width,
        "n_shared_experts": shape.shared // shape.width, "n_group": 1, "topk_group": 1, "head_dim": _head(source),
        "norm_topk_prob": shape.normalize or flat, "routed_scaling_factor": float(shape.top_k) if flat else 1.0,
    }  # fmt: skip


def _glm4(shape: StockShape, source: Fields) -> dict[str, Any]:
    rope = {**(source.get("rope_parameters") or {}), "partial_rotary_factor": 1.0}
    return _deepseek(shape, source) | {"use_qk_norm": False, "num_mtp_layers": 0, "rope_parameters": rope}


_SOFTMAX, _EITHER = (("softmax", True),), (("softmax", True), ("softmax", False))
_SIGMOID = (("sigmoid", True), ("sigmoid", False))
_LLAMAS = ("llama", "mistral")


def _rows() -> Iterator[Family]:
    # Mixtral is the best known. Where experts are added up Granite's is better: in transformers it chooses by scores, which are
    # finer than probabilities.
    yield Family("granitemoe", _LLAMAS, (), "none", "none", _windows, _granite)
    yield Family("mixtral", _LLAMAS, _SOFTMAX, "none", "none", _biases, _mixtral)
    yield Family("granitemoe", ("granite",), _SOFTMAX, "none", "none", _never, _granite)
    yield Family("granitemoeshared", (*_LLAMAS, "granite"), _SOFTMAX, "any", "none", _windows, _granite)
    yield Family("qwen2_moe", (*_LLAMAS, "qwen2"), _EITHER, "any", "any", _unless_qwen2, _qwen2)
    yield Family("glm4_moe", _LLAMAS, _SIGMOID, "multiple", "first", _either, _glm4, True)
    yield Family("qwen3_moe", ("qwen3",), _EITHER, "none", "any", _one_window, _qwen)
    yield Family("dots1", ("qwen3",), _SIGMOID, "multiple", "first", _never, _deepseek, True)


FAMILIES = tuple(_rows())
