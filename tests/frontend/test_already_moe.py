"""Models that are a Mixture of Experts already keep those layers; only their dense feed-forward networks are converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import moeify
from converted import distance, main_output
from moeify import api
from moeify.errors import InputError
from zoo import ids

_SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "intermediate_size": 48, "num_hidden_layers": 2,
}  # fmt: skip
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_PLAIN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_DEEPSEEK = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 24, "kv_lora_rank": 8,
    "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "topk_group": 1,
    "first_k_dense_replace": 1,
}  # fmt: skip
_MOE, _SHARED = "it is a Mixture of Experts already", "it is the shared expert of a Mixture of Experts"

#: class without ForCausalLM, options of its config, dense FFNs, what is left and why
MODELS: Mapping[str, tuple[dict[str, Any], list[str], dict[str, str]]] = {
    "Mixtral": (_LOCAL, [], {"model.layers.0.mlp": _MOE, "model.layers.1.mlp": _MOE}),
    "Qwen2Moe": (
        _PLAIN | {"shared_expert_intermediate_size": 48, "mlp_only_layers": [0]},
        ["model.layers.0.mlp"], {"model.layers.1.mlp": _MOE},
    ),
    "Qwen3Moe": (_PLAIN | {"head_dim": 8, "mlp_only_layers": [1]}, ["model.layers.1.mlp"], {"model.layers.0.mlp": _MOE}),
    "GraniteMoe": (_LOCAL, [], {f"model.layers.{i}.block_sparse_moe": _MOE for i in range(2)}),
    "GraniteMoeShared": (
        _LOCAL | {"shared_intermediate_size": 32}, [],
        {f"model.layers.{i}.block_sparse_moe": _MOE for i in range(2)}
        | {f"model.layers.{i}.shared_mlp": _SHARED for i in range(2)},
    ),
    "Olmoe": ({"num_experts": 4, "num_experts_per_tok": 2}, [], {f"model.layers.{i}.mlp": _MOE for i in range(2)}),
    "DeepseekV2": (_DEEPSEEK | {"n_group": 1}, ["model.layers.0.mlp"], {"model.layers.1.mlp": _MOE}),
    "DeepseekV3": (_DEEPSEEK | {"n_group": 2}, ["model.layers.0.mlp"], {"model.layers.1.mlp": _MOE}),
}  # fmt: skip


def build(name: str) -> Any:
    import transformers

    config = getattr(transformers, f"{name}Config")(**_SIZES, **MODELS[name][0], bos_token_id=1, eos_token_id=2, pad_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def output(model: Any) -> Tensor:
    with torch.no_grad():
        return main_output(model(input_ids=ids(), use_cache=False))


@pytest.mark.sampled
@pytest.mark.parametrize("name", [name for name, case in MODELS.items() if not case[1]])
def test_experts_are_not_found(name: str) -> None:
    found = api.inspect(build(name))
    assert found.rows == ()
    assert {refusal.path: refusal.reason for refusal in found.refusals} == MODELS[name][2]


@pytest.mark.parametrize("name", ["Mixtral", "GraniteMoeShared"])
@pytest.mark.parametrize("run", [moeify.convert, api.plan])
def test_a_stock_checkpoint_is_imported_and_not_converted(run: Callable[..., Any], name: str, tmp_path: Path) -> None:
    """By its config, before a weight is read."""
    build(name).save_pretrained(tmp_path / "stock")
    (tmp_path / "stock" / "model.safetensors").write_bytes(b"")
    known = f"is a Mixture of Experts already \\({name.lower()}\\), without a dense feed-forward network"
    with pytest.raises(InputError, match=rf"stock: {known}; moeify import .*stock -o OUT reads it, or give the dense model"):
        run(tmp_path / "stock", experts=4)


@pytest.mark.sampled
@pytest.mark.parametrize("name", [name for name, case in MODELS.items() if case[1]])
def test_experts_stay_as_they_are_and_the_model_computes_the_same(name: str, tmp_path: Path) -> None:
    dense = build(name)
    dense.save_pretrained(tmp_path / "dense")
    expected, before = output(dense), dense.state_dict()
    done = moeify.convert(tmp_path / "dense", tmp_path / "out", recipe="random", experts=4, top_k=4)
    assert distance(output(done.model), expected) < 1e-6
    assert [layer.path for layer in done.report.layers] == MODELS[name][1]
    assert {r[0]: r[1] for r in done.report.refusals} == MODELS[name][2]
    kept = done.model.state_dict()
    inside = [key for key in before if any(key.startswith(f"{path}.") for path in MODELS[name][2])]
    assert inside
    assert all(torch.equal(kept[key], before[key]) for key in inside)
    again = moeify.load(tmp_path / "out")
    assert type(again) is type(dense)
    assert distance(output(again), expected) < 1e-6


@pytest.mark.slow
def test_a_model_of_nothing_but_experts_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match=r"2 refused, the first model\.layers\.0\.mlp: it is a Mixture of Experts already"):
        moeify.convert(build("Mixtral"), experts=4)
