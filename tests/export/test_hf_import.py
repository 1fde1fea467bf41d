"""Stock checkpoints read back: the converted model that they were made of, or what their class computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import moeify
from export.stock_models import SHARED, converted, decoder, ids
from export.test_hf import SIGMOID, distance, load
from moeify import api
from moeify.errors import ConversionError, InputError
from moeify.export.folder import load_folder
from moeify.export.hf import importing
from moeify.export.hf.reading import layer_of
from moeify.pipeline.recipe import Recipe

# caption, model, recipe, options of convert
MADE: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("GraniteMoe of a Llama", "llama", "emoe", {"experts": 4, "top_k": 2}),
    ("GraniteMoe of a Granite", "granite", "emoe", {"experts": 4, "top_k": 3}),
    ("Mixtral of a Mistral", "mistral", "drop-upcycle", {"experts": 4}),
    ("Mixtral of LoRA experts", "llama", "lora-experts", {"experts": 4}),
    ("Qwen2-MoE of a Llama, one layer dense", "llama", "upcycle", {"experts": 4, "layers": "*.1.mlp"}),
    ("Qwen2-MoE of a Qwen2", "qwen2", "emoe", {"experts": 4, "top_k": 2}),
    ("Qwen3-MoE of a Qwen3", "qwen3", "emoe", {"experts": 4, "top_k": 2}),
    ("GraniteMoeShared", "llama", SHARED, {}),
    ("Qwen2-MoE with a shared expert", "qwen2", SHARED, {}),
    ("GLM4-MoE", "llama", SHARED, {"settings": SIGMOID}),
    ("dots1, experts added up", "qwen3", SHARED, {}),
    ("dots1, sigmoid gates", "qwen3", SHARED, {"settings": SIGMOID | {"insert-router.normalize": True}}),
]


#: In the fast tier: experts added up, copies, and a shared expert with sigmoid gates.
_FAST = ("GraniteMoe of a Llama", "Mixtral of LoRA experts", "GLM4-MoE")


@pytest.mark.parametrize(
    ("name", "recipe", "options"),
    [pytest.param(*c[1:], id=c[0], marks=() if c[0] in _FAST else pytest.mark.slow) for c in MADE],
)
def test_what_moeify_wrote_comes_back_as_it_was(name: str, recipe: Any, options: dict[str, Any], tmp_path: Path) -> None:
    if recipe is SHARED:
        torch.save(ids(), tmp_path / "ids.pt")
        recipe, options = Recipe.parse(SHARED, "shared"), options | {"calibrate": tmp_path / "ids.pt"}
    out, stock, back = (tmp_path / part for part in ("out", "stock", "back"))
    converted(name, recipe, output=out, **options)
    api.export_hf(out, stock, example=(ids(),))
    found = api.import_hf(stock, back, example=(ids(),))
    assert found.remembered
    assert found.agreement.alike == 1.0
    before, after = load_folder(out), load_folder(back)
    assert after.manifest.source.model_class == before.manifest.source.model_class
    assert (back / "recipe.toml").read_bytes() == (out / "recipe.toml").read_bytes()
    for path, entry in before.manifest.layers.items():
        plain = {"composed": None} if entry.config.composed is not None else {}
        again = after.manifest.layers[path]
        assert again.config.to_json() == entry.config.to_json() | plain
        assert (again.rewrite, again.places) == (entry.rewrite, entry.places)
    assert distance(before.model, after.model, ids()) < 1e-6


@pytest.mark.slow
def test_a_carved_model_that_came_back_becomes_dense_again(tmp_path: Path) -> None:
    dense = decoder("llama").eval()
    converted("llama", "emoe", experts=4, top_k=2, output=tmp_path / "out")
    api.export_hf(tmp_path / "out", tmp_path / "stock")
    api.import_hf(tmp_path / "stock", tmp_path / "back")
    api.to_dense(tmp_path / "back", tmp_path / "dense")
    assert distance(dense, load(tmp_path / "dense"), ids()) < 1e-5


@pytest.mark.slow
def test_a_checkpoint_that_was_trained_since_is_read_as_its_class_computes_it(tmp_path: Path) -> None:
    converted("llama", "emoe", experts=4, top_k=2, output=tmp_path / "out")
    api.export_hf(tmp_path / "out", tmp_path / "stock")
    model: Any = load(tmp_path / "stock")
    model.model.layers[0].block_sparse_moe.router.weight.data.mul_(300)
    model.save_pretrained(tmp_path / "stock")
    found = api.import_hf(tmp_path / "stock", tmp_path / "back")
    assert not found.remembered
    again = moeify.load(tmp_path / "back")
    assert distance(model, again, ids()) < 1e-5
    assert [layer.config.gate_rule for layer in moeify.moe_layers(again).values()] == ["softmax", "softmax"]


def foreign(kind: str, **fields: Any) -> transformers.PreTrainedModel:
    """A small stock model that moeify had nothing to do with; its routers decide."""
    sizes = {
        "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 24, "moe_intermediate_size": 12, "num_experts_per_tok": 2, "pad_token_id": None, "head_dim": 4,
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(kind, **(sizes | fields))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.data.normal_(0, 0.3)
    return model.eval()


#: Fields of checkpoints in bfloat16: rows are a multiple of 16 bytes.
_BF16: dict[str, dict[str, Any]] = {
    "mixtral": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_local_experts": 4},
    "qwen3_moe": {
        "hidden_size": 64, "moe_intermediate_size": 64, "head_dim": 16, "num_experts": 8, "norm_topk_prob": True,
    },
}  # fmt: skip

# caption, model_type, fields, class that the converted model has
READ: list[tuple[str, str, dict[str, Any], str]] = [
    ("a Mixtral", "mixtral", {"num_local_experts": 4}, "MistralForCausalLM"),
    ("a GraniteMoe", "granitemoe", {"num_local_experts": 4, "logits_scaling": 2.0, "residual_multiplier": 0.5},
     "GraniteForCausalLM"),
    ("a GraniteMoeShared", "granitemoeshared", {"num_local_experts": 4, "shared_intermediate_size": 20}, "GraniteForCausalLM"),
    ("a Qwen3-MoE", "qwen3_moe", {"num_experts": 4, "mlp_only_layers": [0]}, "Qwen3ForCausalLM"),
    ("a dots1", "dots1", {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1,
     "topk_group": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True}, "Qwen3ForCausalLM"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "fields", "cls"), [c[1:] for c in READ], ids=[c[0] for c in READ])
def test_a_checkpoint_of_somebody_else_is_read_too(kind: str, fields: dict[str, Any], cls: str, tmp_path: Path) -> None:
    model = foreign(kind, **fields)
    model.save_pretrained(tmp_path / "stock")
    found = api.import_hf(tmp_path / "stock", tmp_path / "back")
    assert not found.remembered
    assert found.agreement.alike == 1.0
    again = moeify.load(tmp_path / "back")
    assert type(again).__name__ == cls
    assert distance(model, again, ids()) < 1e-5


@pytest.mark.parametrize("shard", ["5GB", "50KB"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_a_checkpoint_in_bfloat16_stays_in_it(kind: str, shard: str, tmp_path: Path) -> None:
    model: Any = foreign(kind, **_BF16[kind]).bfloat16()
    model.save_pretrained(tmp_path / "stock", max_shard_size=shard)
    assert (len(list((tmp_path / "stock").glob("*.safetensors"))) > 1) == (shard == "50KB")
    found = api.import_hf(tmp_path / "stock", tmp_path / "back", dtype="bf16")
    assert found.agreement.alike > 0.98
    again = moeify.load(tmp_path / "back")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    layer, block = again.get_submodule("model.layers.0.mlp"), model.model.layers[0].mlp
    assert torch.equal(layer.get_parameter("gate"), block.experts.gate_up_proj.chunk(2, dim=1)[0].flatten(0, 1))
    assert torch.equal(layer.get_submodule("router").get_parameter("weight"), block.gate.weight)


def test_a_deep_checkpoint_in_bfloat16_is_compared_layer_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its roundings add up, and choices are others somewhere for each token: logits alone would say nothing."""
    foreign("qwen3_moe", **_BF16["qwen3_moe"], num_hidden_layers=48).bfloat16().save_pretrained(tmp_path / "stock")
    found = api.import_hf(tmp_path / "stock", tmp_path / "back", dtype="bf16")
    assert found.agreement.distance is None

    def wrong(*given: Any) -> Any:
        shape, tensors = layer_of(*given)
        return shape, tensors | {"down": tensors["down"] * 1.1}

    monkeypatch.setattr(importing, "layer_of", wrong)
    with pytest.raises(
        ConversionError, match=r"does not compute the same .*: a layer's outputs are apart by 1\.0e-01; nothing"
    ):
        api.import_hf(tmp_path / "stock", tmp_path / "other", dtype="bf16")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_mixtral_goes_to_onnx_and_is_measured(tmp_path: Path) -> None:
    foreign("mixtral", num_local_experts=4).save_pretrained(tmp_path / "stock")
    api.import_hf(tmp_path / "stock", tmp_path / "back")
    api.export(tmp_path / "back", tmp_path / "model.onnx")  # compared with the eager model
    assert (tmp_path / "model.onnx").is_file()
    torch.save(ids(), tmp_path / "ids.pt")
    scores = api.evaluate(tmp_path / "back", tmp_path / "ids.pt").to_json()
    assert scores["scores"]
    report = api.export_hf(tmp_path / "back", tmp_path / "again")
    assert (report.model_type, report.agreement.alike) == ("mixtral", 1.0)


# caption, model_type, fields, what the message says
REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("a shared expert with a gate", "qwen2_moe", {"num_experts": 4, "shared_expert_intermediate_size": 12},
     r"layers\.0\.mlp: its shared expert has a gate that depends on the token"),
    ("a GLM4-MoE", "glm4_moe", {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 0, "n_group": 1,
     "topk_group": 1}, "a glm4_moe model is not read: its attention turns a part of each head"),
    ("groups of experts", "dots1", {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 0, "n_group": 2,
     "topk_group": 1}, "a dots1 model is not read: its experts are chosen by groups"),
    ("a dense model", "llama", {}, "a llama model is not read: known are dots1, glm4_moe, granitemoe"),
    ("another MoE", "olmoe", {"num_experts": 4}, "a olmoe model is not read: known are"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "fields", "message"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_layers_of_moeify_do_not_compute_is_refused(
    kind: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    foreign(kind, **fields).save_pretrained(tmp_path / "stock")
    with pytest.raises(ConversionError, match=message):
        api.import_hf(tmp_path / "stock", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_damaged_note_is_told(tmp_path: Path) -> None:
    converted("llama", "emoe", experts=4, top_k=2, output=tmp_path / "out")
    api.export_hf(tmp_path / "out", tmp_path / "stock")
    note = tmp_path / "stock" / "moeify-export.json"
    data = json.loads(note.read_text("utf-8"))
    del data["made_of"]["layers"][0]["config"]["offsets"]
    note.write_text(json.dumps(data), "utf-8")
    with pytest.raises(InputError, match=r"moeify-export\.json: made_of: layers\[0\]: config: field offsets is missing"):
        api.import_hf(tmp_path / "stock", tmp_path / "back")
    note.write_text("{", "utf-8")
    with pytest.raises(InputError, match=r"moeify-export\.json: is damaged"):
        api.import_hf(tmp_path / "stock", tmp_path / "back")


def test_what_is_no_folder_of_a_checkpoint_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, reason in (("empty", "has no config.json"), ("absent", "there is no such folder")):
        with pytest.raises(InputError, match=rf"{name}: {reason}; give the folder of a stock checkpoint"):
            api.import_hf(tmp_path / name, tmp_path / "back")
