"""Stock checkpoints of transformers: the same experts and outputs as the converted model, or a reason why not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import moeify
from export.stock_models import SHARED, converted, decoder, ids
from moeify import api
from moeify.errors import ConversionError, UsageError
from moeify.export.hf.writing import check_source, export_hf
from moeify.measure.evaluation import Evaluation
from moeify.pipeline.recipe import Recipe

SIGMOID = {"insert-router.gate": "sigmoid"}
UNNORMALISED = {"insert-router.normalize": False, "insert-router.detach_sum": False}

# caption, model, recipe, options of convert, the class that holds it, bound on the distance
HELD: list[tuple[str, str, str, dict[str, Any], str, float]] = [
    ("experts of a Llama added up", "llama", "emoe", {"experts": 4, "top_k": 2}, "granitemoe", 1e-3),
    ("all experts of a Llama on", "llama", "emoe", {"experts": 4, "top_k": 4}, "granitemoe", 1e-3),
    ("copies of a Llama's FFN", "llama", "upcycle", {"experts": 4}, "mixtral", 1e-5),
    ("fine copies of a Llama's FFN", "llama", "granular-upcycle", {"experts": 2}, "mixtral", 1e-5),
    ("gates that do not sum up to 1", "llama", "upcycle", {"experts": 4, "settings": UNNORMALISED}, "qwen2_moe", 1e-5),
    ("one layer of a Llama", "llama", "upcycle", {"experts": 4, "layers": "*.1.mlp"}, "qwen2_moe", 1e-5),
    ("copies of a Mistral's FFN", "mistral", "drop-upcycle", {"experts": 4}, "mixtral", 1e-5),
    ("LoRA experts of a Llama", "llama", "lora-experts", {"experts": 4}, "mixtral", 1e-5),
    ("experts of a Qwen2 added up", "qwen2", "emoe", {"experts": 4, "top_k": 2}, "qwen2_moe", 1e-3),
    ("copies of a Qwen2's FFN", "qwen2", "upcycle", {"experts": 4}, "qwen2_moe", 1e-5),
    ("experts of a Qwen3 added up", "qwen3", "emoe", {"experts": 4, "top_k": 2}, "qwen3_moe", 1e-3),
    ("copies of a Qwen3's FFN", "qwen3", "upcycle", {"experts": 4}, "qwen3_moe", 1e-5),
    ("experts of a Granite added up", "granite", "emoe", {"experts": 4, "top_k": 2}, "granitemoe", 1e-3),
    ("copies of a Granite's FFN", "granite", "upcycle", {"experts": 4}, "granitemoe", 1e-5),
]


@pytest.mark.sampled
@pytest.mark.parametrize(("name", "recipe", "options", "target", "bound"), [c[1:] for c in HELD], ids=[c[0] for c in HELD])
def test_a_stock_class_gives_what_the_converted_model_gives(
    name: str, recipe: str, options: dict[str, Any], target: str, bound: float, tmp_path: Path
) -> None:
    model = converted(name, recipe, **options).model
    report = export_hf(model, (ids(),), tmp_path / "hf")
    assert (report.model_type, report.lost, report.agreement.alike) == (target, (), 1.0)
    other = ids().flip(1)  # not what the export compared on
    assert distance(model, load(tmp_path / "hf"), other) < bound


@pytest.mark.parametrize(
    ("name", "settings", "target", "bound"),
    [
        ("llama", {}, "granitemoeshared", 1e-3),
        ("granite", {}, "granitemoeshared", 1e-3),
        ("qwen2", {}, "qwen2_moe", 1e-3),
        ("qwen3", {}, "dots1", 1e-3),
        ("llama", SIGMOID, "glm4_moe", 1e-5),
        ("qwen3", SIGMOID, "dots1", 1e-5),
        ("llama", SIGMOID | {"insert-router.normalize": True}, "glm4_moe", 1e-5),
    ],
)
def test_shared_experts_are_held_too(name: str, settings: dict[str, Any], target: str, bound: float, tmp_path: Path) -> None:
    torch.save(ids(), tmp_path / "ids.pt")
    done = converted(name, Recipe.parse(SHARED, "shared"), calibrate=tmp_path / "ids.pt", settings=settings)
    report = export_hf(done.model, (ids(),), tmp_path / "hf")
    assert (report.model_type, report.agreement.alike) == (target, 1.0)
    assert distance(done.model, load(tmp_path / "hf"), ids().flip(1)) < bound


@pytest.mark.slow
def test_heads_may_be_wider_than_their_share_of_the_hidden_state(tmp_path: Path) -> None:
    model = converted("qwen3", "upcycle", {"head_dim": 12}, experts=4).model
    export_hf(model, (ids(),), tmp_path / "hf")
    assert distance(model, load(tmp_path / "hf"), ids()) < 1e-5


@pytest.mark.slow
def test_all_experts_on_give_the_dense_model(tmp_path: Path) -> None:
    dense = decoder("llama").eval()
    export_hf(converted("llama", "emoe", experts=4, top_k=4).model, (ids(),), tmp_path / "hf")
    assert distance(dense, load(tmp_path / "hf"), ids()) < 1e-3


@pytest.mark.slow
def test_a_process_without_moeify_loads_it(tmp_path: Path) -> None:
    model = converted("qwen3", "upcycle", experts=4).model
    export_hf(model, (ids(),), tmp_path / "hf")
    code = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()\n"
        "x = torch.load(sys.argv[2])\n"
        "with torch.no_grad():\n"
        "    torch.save(model(x).logits, sys.argv[3])\n"
        "assert 'moeify' not in sys.modules\n"
    )
    torch.save(ids(), tmp_path / "ids.pt")
    paths = [str(tmp_path / name) for name in ("hf", "ids.pt", "logits.pt")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, capture_output=True)
    with torch.no_grad():
        want = model(ids()).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), want, rtol=0, atol=1e-5 * float(want.abs().max()))


@pytest.mark.slow
def test_convert_writes_it_beside_the_folder(tmp_path: Path) -> None:
    moeify.convert(decoder("llama"), tmp_path / "out", experts=4, top_k=2, example=(ids(),), export=("torch", "hf"))
    model = moeify.load(tmp_path / "out")
    assert distance(model, load(tmp_path / "out" / "hf"), ids()) < 1e-3
    again = api.export_hf(tmp_path / "out", tmp_path / "hf", example=(ids(),))
    assert again.to_json()["model_type"] == "granitemoe"
    assert json.loads((tmp_path / "hf" / "moeify-export.json").read_text("utf-8"))["agreement"]["alike"] == 1.0
    card = (tmp_path / "hf" / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "2 of 4 experts of 12 neurons, added up" in card
    assert "with the recipe `emoe`" in card
    assert f"| parameters | {sum(p.numel() for p in load(tmp_path / 'hf').parameters()):,} |" in card
    assert "| active fraction of the FFNs | 52.8% |" in card
    assert '[[pass.pass]]\nname = "cluster-neurons"' in card
    api.export_hf(tmp_path / "out", tmp_path / "hf", example=(ids(),), force=True)


@pytest.mark.slow
def test_the_card_shows_the_evaluations_that_the_folder_keeps(tmp_path: Path) -> None:
    dense: Any = decoder("llama")
    dense.save_pretrained(tmp_path / "dense")
    moeify.convert(tmp_path / "dense", tmp_path / "out", experts=4, top_k=2, example=(ids(),))
    for seed in (0, 1):
        rows = torch.randint(0, 30, (4, 12), generator=torch.Generator().manual_seed(seed))
        torch.save(rows, tmp_path / f"rows-{seed}.pt")
    api.export_hf(tmp_path / "out", tmp_path / "before", example=(ids(),))
    command = "`moeify evaluate OUT --data TEXT --dense MODEL --record`"
    assert command in (tmp_path / "before" / "README.md").read_text("utf-8")
    api.evaluate(tmp_path / "out", tmp_path / "rows-1.pt", record=True)
    first = api.evaluate(tmp_path / "out", tmp_path / "rows-0.pt", dense=tmp_path / "dense", record=True)
    torch.save(rows[:2], tmp_path / "rows-1.pt")
    again = api.evaluate(tmp_path / "out", tmp_path / "rows-1.pt", record=True)
    api.export_hf(tmp_path / "out", tmp_path / "after", example=(ids(),))
    card = (tmp_path / "after" / "README.md").read_text("utf-8")
    assert command not in card
    before, after = perplexity(first, "dense"), perplexity(first, "converted")
    assert [line for line in card.splitlines() if line.startswith("| rows-")] == [
        f"| rows-0.pt | 44 | {before:.3f} | {after:.3f} | {after / before:.3f} | 52.8% |",
        f"| rows-1.pt | 22 | - | {perplexity(again, 'converted'):.3f} | - | 52.8% |",
    ]
    assert after != pytest.approx(before, rel=1e-3)


def perplexity(found: Evaluation, model: str) -> float:
    score = found.score(model)
    assert score is not None
    assert score.perplexity is not None
    return score.perplexity.value


@pytest.mark.slow
def test_what_no_class_holds_is_left_out_on_the_users_word_alone(tmp_path: Path) -> None:
    torch.save(ids(), tmp_path / "ids.pt")
    last = '    { name = "insert-router", top_k = 2 },\n'
    recipe = Recipe.parse(SHARED.replace(last, last + '    { name = "compensate" },\n'), "compensated")
    model = converted("llama", recipe, calibrate=tmp_path / "ids.pt").model
    with pytest.raises(ConversionError, match=r"model\.layers\.0\.mlp: has idle vectors, .* --lossy leaves it out"):
        export_hf(model, (ids(),), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    report = export_hf(model, (ids(),), tmp_path / "hf", lossy=True)
    assert report.lost == ("idle vectors (2 layers)",)
    assert "left out: idle vectors (2 layers)" in str(report)
    assert "Left out of it: idle vectors (2 layers)." in (tmp_path / "hf" / "README.md").read_text("utf-8")


# caption, model, recipe, options, config, what the message says
REFUSED: list[tuple[str, str, str, dict[str, Any], dict[str, Any], str]] = [
    ("a GPT-2", "gpt2", "emoe", {"experts": 4}, {}, r"no stock .* gpt2 model does; known are granite, llama, mistral, qwen2"),
    ("drawn experts", "llama", "thor", {"experts": 2}, {}, r"its router is 'stochastic', and those of stock"),
    ("biases in attention and other gates", "llama", "upcycle", {"experts": 4, "settings": UNNORMALISED},
     {"attention_bias": True}, r"no stock class of a llama model holds .*: .*; qwen2_moe has no biases in attention"),
    ("sigmoid gates without a shared expert", "qwen3", "upcycle", {"experts": 4, "settings": SIGMOID}, {},
     r"qwen3_moe has other gates; dots1 has a shared expert of a multiple of 48 neurons"),
    ("a dense layer of a Granite", "granite", "emoe", {"experts": 4, "layers": "*.0.mlp"}, {},
     r"layers 1 dense: granitemoe has experts in every layer"),
    ("an encoder", "bert", "emoe", {"experts": 4}, {}, r"a bert model does; known are"),
]  # fmt: skip


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "recipe", "options", "config", "message"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_what_does_not_fit_is_refused_with_the_reason(
    name: str, recipe: str, options: dict[str, Any], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = converted(name, recipe, config, **options).model
    with pytest.raises(ConversionError, match=message):
        export_hf(model, (ids(),), tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_layers_of_two_shapes_are_refused(tmp_path: Path) -> None:
    model = converted("llama", "emoe", experts=4, top_k=2).model
    moeify.set_top_k(model, 3, layers="*.1.mlp")
    with pytest.raises(ConversionError, match=r"one shape .*0\.mlp is 2 of 4 experts .*1\.mlp is 3 of 4 experts"):
        export_hf(model, (ids(),), tmp_path / "hf")


def test_a_model_without_a_stock_class_is_refused_before_it_is_converted(tmp_path: Path) -> None:
    dense = decoder("gpt2")
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    with pytest.raises(ConversionError, match="gpt2"):
        moeify.convert(dense, tmp_path / "out", experts=4, example=(ids(),), export=("torch", "hf"))
    assert dense.state_dict().keys() == before.keys()
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConversionError, match=r"Sequential: stock .* decoders of transformers alone"):
        check_source(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(UsageError, match="needs an output folder"):
        moeify.convert(dense, experts=4, example=(ids(),), export=("hf",))


@pytest.mark.parametrize(("name", "recipe"), [("llama", "upcycle"), ("qwen3", "upcycle")])
def test_files_are_no_larger_than_asked(name: str, recipe: str, tmp_path: Path) -> None:
    model = converted(name, recipe, experts=4, config={"tie_word_embeddings": True}).model
    export_hf(model, (ids(),), tmp_path / "one")
    export_hf(model, (ids(),), tmp_path / "many", most=6000)
    assert (tmp_path / "one" / "model.safetensors").is_file()
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text("utf-8"))
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3
    assert files == sorted(set(index["weight_map"].values()))
    assert files[-1].endswith(f"-of-{len(files):05d}.safetensors")
    sizes = {file: sum(tensor.nbytes for tensor in load_file(tmp_path / "many" / file).values()) for file in files}
    assert max(sizes.values()) <= 6000
    assert sum(sizes.values()) == index["metadata"]["total_size"]
    assert distance(load(tmp_path / "one"), load(tmp_path / "many"), ids()) == 0
    loaded: Any = load(tmp_path / "many")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.slow
def test_a_checkpoint_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moeify.export.hf import weights, writing

    model = converted("llama", "upcycle", experts=4).model
    real = weights.layer_tensors

    def spoilt(*args: Any) -> dict[str, torch.Tensor]:
        return {name: value * 1.01 if "down_proj" in name else value for name, value in real(*args).items()}

    monkeypatch.setattr(writing, "layer_tensors", spoilt)
    with pytest.raises(ConversionError, match=r"is not the converted model: same experts for .* nothing was written"):
        export_hf(model, (ids(),), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def load(folder: Path) -> nn.Module:
    import transformers

    model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    return model


def distance(model: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    """Largest difference of a logit / the largest."""
    with torch.no_grad():
        want, have = model(x).logits, other(x).logits
    return float((want - have).abs().max() / want.abs().max())
