"""The Python API from end to end on tiny models: convert, load, plan, inspect, evaluate."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import moeify
from converted import distance, main_output, opened
from moeify.api import registry
from moeify.data.open_data import open_data
from moeify.errors import ConversionError, InputError, MissingExtraError, UsageError
from moeify.layers.budget import moe_layers
from moeify.measure.evaluate import evaluate_model
from moeify.measure.layer_errors import NAMES
from moeify.pipeline.configure import configure
from moeify.pipeline.layer_nulls import mean_errors
from moeify.pipeline.plan import Plan, foresee
from moeify.pipeline.recipe import load_recipe, presets
from moeify.pipeline.report import Report
from moeify_passes import ClusterNeurons, FindFeedForward, InsertRouter, Random, SplitExperts
from zoo import ZOO, Zoo, ids

#: What recipes take instead of a number of experts and of experts a token.
BUDGET: dict[str, dict[str, Any]] = {
    "static": {"active": 0.5},
    "flap": {"active": 0.5},
    "d2dmoe": {
        "experts": 4,
        "active": 0.8,
        "settings": {"insert-router.by": {"kind": "norm-regression", "width": 4, "relative": True, "steps": 50}},
    },
}

#: Recipes that choose by a threshold: how many experts a token uses is measured, not foreseen.
DYNAMIC = ("best", "d2dmoe", "fast")
SMALL = {"experts": 4, "settings": {"calibrate.tokens": 64}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama on disk."""
    ZOO["llama"]().model.save_pretrained(tmp_path / "llama")  # type: ignore[operator]  # a transformers model
    return tmp_path / "llama"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Token ids, [12, 16], as a tensor file."""
    torch.save({"input_ids": ids(12, 16)}, tmp_path / "ids.pt")
    return tmp_path / "ids.pt"


def run(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return main_output(model(input_ids=ids()))


def check_foreseen(recipe: str, plan: Plan, report: Report) -> None:
    """The plan told what the conversion then did."""
    assert [(layer.path, layer.parameters_after) for layer in plan.layers] == [
        (layer.path, layer.parameters_after) for layer in report.layers
    ]
    if recipe not in DYNAMIC:
        assert [(layer.top_k, layer.active_fraction) for layer in plan.layers] == [
            (layer.top_k, layer.active_fraction) for layer in report.layers
        ]
    assert plan.active_fraction == pytest.approx(report.active_fraction, abs=0.2 if recipe in DYNAMIC else 1e-9)
    assert plan.peak_memory > plan.weights == 4 * plan.parameters_after


@pytest.mark.sampled
@pytest.mark.parametrize("recipe", sorted(presets()))
def test_every_recipe_converts_and_its_folder_gives_the_same_model(
    recipe: str, folder: Path, data: Path, tmp_path: Path
) -> None:
    budget = BUDGET.get(recipe, {"top_k": 2, "experts": 4})
    told: list[Plan] = []
    done = moeify.convert(folder, tmp_path / "out", recipe=recipe, calibrate=data, planned=told.append, **budget)
    check_foreseen(recipe, told[0], done.report)
    assert done.folder == tmp_path / "out"
    again, made = moeify.load(tmp_path / "out"), done.model.state_dict()
    assert all(torch.equal(value, made[name]) for name, value in again.state_dict().items())
    assert distance(run(again), run(done.model)) < 1e-6  # how a file is mapped decides in which order sums are made
    assert [layer.top_k for layer in done.report.layers] == [None if recipe in DYNAMIC else budget.get("top_k")] * 2
    assert all((layer.threshold is not None) == (recipe in DYNAMIC) for layer in done.report.layers)
    assert done.report.active_fraction <= budget.get("active", 3.5)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["active_fraction"] == pytest.approx(done.report.active_fraction)


@pytest.mark.slow
def test_the_recipe_in_the_folder_makes_the_same_bytes_again(folder: Path, data: Path, tmp_path: Path) -> None:
    moeify.convert(folder, tmp_path / "one", recipe="markers", experts=4, top_k=2, calibrate=data, seed=7)
    moeify.convert(folder, tmp_path / "two", recipe=tmp_path / "one" / "recipe.toml", calibrate=data)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert Path("moeify.safetensors") in files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.slow
def test_another_seed_makes_other_experts(folder: Path) -> None:
    first, second = (moeify.convert(folder, recipe="random", experts=4, top_k=4, seed=seed).model for seed in (0, 1))
    assert not torch.equal(first.get_parameter("model.layers.0.mlp.up"), second.get_parameter("model.layers.0.mlp.up"))
    assert distance(run(first), run(second)) < 1e-5


def test_without_data_it_says_so(folder: Path) -> None:
    done = moeify.convert(folder, experts=4, top_k=4)
    assert any("no calibration data" in note for note in done.report.notes)
    assert "converted" in str(done.report)


def test_a_module_in_memory_is_rewritten_in_place() -> None:
    zoo = ZOO["residual-stack"]()
    expected = zoo.run()
    done = moeify.convert(zoo.model, example=zoo.example, experts=4, top_k=4)
    assert done.model is zoo.model
    assert len(moe_layers(zoo.model)) == 2
    assert distance(zoo.run(), expected) < 1e-5


@pytest.mark.slow
def test_layers_leaves_the_others_dense(folder: Path) -> None:
    done = moeify.convert(folder, experts=4, layers="last-half")
    assert [layer.path for layer in done.report.layers] == ["model.layers.1.mlp"]


@pytest.mark.slow
def test_bfloat16(folder: Path, tmp_path: Path) -> None:
    done = moeify.convert(folder, tmp_path / "out", experts=4, top_k=4, dtype="bf16")
    again = moeify.load(tmp_path / "out")
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert torch.equal(run(again), run(done.model))


@pytest.mark.sampled
@pytest.mark.parametrize("recipe", ["emoe", "upcycle"])
def test_a_dry_run_foresees_what_a_conversion_does(recipe: str, folder: Path, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": recipe, "calibrate": data, "experts": 4, "top_k": 3}
    plan = moeify.api.plan(folder, **options)
    told: list[Plan] = []
    done = moeify.convert(folder, tmp_path / "out", **options, planned=told.append)
    assert told == [plan]
    check_foreseen(recipe, plan, done.report)
    assert plan.grows == (recipe == "upcycle")


def test_a_budget_that_layers_share_is_foreseen_as_a_whole(folder: Path, data: Path) -> None:
    """What each layer gets is measured; together they keep to the budget."""
    told: list[Plan] = []
    done = moeify.convert(folder, recipe="best", calibrate=data, experts=4, active=0.8, planned=told.append)
    assert [layer.path for layer in told[0].layers] == [layer.path for layer in done.report.layers]
    assert done.report.active_fraction <= 0.8 >= told[0].active_fraction


@pytest.mark.slow
@hypothesis_settings(max_examples=12, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2), st.sampled_from(["llama", "gpt2"]))
def test_foreseen_shapes_are_the_shapes_that_come_out(experts: int, shared: int, name: str) -> None:
    zoo, graph = opened(name)
    plan = configure(settings={"cluster-neurons.experts": experts, "cluster-neurons.shared_experts": shared})
    plan = plan.set("cluster-neurons", "unequal", True).set("cluster-neurons", "by", "activation-markers")
    pipeline = plan.build(registry())
    graph.sites = graph.host.find()[0]
    foreseen = {site.path: foresee(pipeline.passes, site) for site in graph.sites}
    pipeline.run(graph, [zoo.example])
    assert graph.spliced == foreseen


@pytest.mark.slow
def test_inspect_a_dense_model_and_a_converted_one(folder: Path, tmp_path: Path) -> None:
    dense = moeify.inspect(folder)
    assert dense.kind == "dense"
    assert [row["path"] for row in dense.rows] == ["model.layers.0.mlp", "model.layers.1.mlp"]
    moeify.convert(folder, tmp_path / "out", experts=4, top_k=2)
    found = moeify.inspect(tmp_path / "out")
    assert found.kind == "converted"
    assert [(row["experts"], row["sizes"], row["top_k"], row["rewrite"]) for row in found.rows] == [
        (4, "12", 2, "submodule")
    ] * 2


@pytest.mark.slow
def test_every_source_of_calibration_data_keeps_the_budget(tmp_path: Path) -> None:
    few, many = (
        torch.randint(first, last, (40, 32), generator=torch.Generator().manual_seed(last))
        for first, last in ((0, 6), (20, 40))
    )
    files = [tmp_path / "few.pt", tmp_path / "many.pt"]
    for tensor, file in zip((few, many), files):
        torch.save({"input_ids": tensor}, file)
    done = moeify.convert(
        ZOO["llama"]().model, example={"input_ids": few[:4]}, recipe="best", active=0.5, tokens=4096, calibrate=files,
        settings={"insert-router.reserve": 0.0},
    )  # fmt: skip
    used = [evaluate_model(done.model, open_data(file)).scores[0].active_fraction for file in files]
    assert used[1] == pytest.approx(0.5, abs=1e-3)
    assert used[0] is not None
    assert used[0] < 0.45, "what the other source is not short of"


def test_evaluate_with_nulls(folder: Path, data: Path, tmp_path: Path) -> None:
    moeify.convert(folder, tmp_path / "out", experts=4, top_k=2)
    found = moeify.evaluate(tmp_path / "out", data, dense=folder, nulls=True)
    perplexity = {score.name: score.perplexity.value for score in found.scores if score.perplexity is not None}
    assert list(perplexity)[:2] == ["dense", "converted"]
    assert len(perplexity) == 7
    dense = perplexity["dense"]
    assert all(score.ratio == (perplexity[score.name] / dense) for score in found.scores)
    fractions = {score.name: score.active_fraction for score in found.scores}
    routed = fractions["converted"]
    assert routed is not None
    assert fractions["oracle-routing"] == pytest.approx(routed)
    assert fractions["full-rank-compensation"] == pytest.approx(routed + 16 * 16 / (3 * 16 * 48))
    assert all(abs((fractions[name] or 0) - routed) <= 1 / 48 for name in ("static-mask", "random-partition"))
    assert found.budget == pytest.approx(routed)
    assert found.void is False
    equal = [name for name, value in perplexity.items() if value == pytest.approx(perplexity["dense"], rel=1e-5)]
    assert len(equal) == 2  # the dense model, and all experts on


@pytest.mark.parametrize(("name", "inputs"), [("bert", ("input_ids", "attention_mask")), ("opt", ("input_ids",))])
def test_nulls_are_made_of_the_dense_model_where_layers_stand_in_parts_of_it(
    name: str, inputs: tuple[str, ...], tmp_path: Path
) -> None:
    data, tensors = tmp_path / "ids.pt", {"input_ids": ids(12, 16), "attention_mask": torch.ones(12, 16, dtype=torch.int64)}
    torch.save({key: tensors[key] for key in inputs}, data)
    ZOO[name]().model.save_pretrained(tmp_path / "dense")  # type: ignore[operator]  # a transformers model
    done = moeify.convert(tmp_path / "dense", tmp_path / "out", experts=4, top_k=2)
    found = moeify.evaluate(tmp_path / "out", data, dense=tmp_path / "dense", nulls=True)
    assert [layer.path for layer in found.layers] == [layer.path for layer in done.report.layers]
    assert not any("own rows" in note for note in found.notes)
    without = moeify.evaluate(tmp_path / "out", data, nulls=True)
    assert any(f"that has the FFN of {found.layers[0].path}" in note for note in without.notes)


def test_what_costs_more_than_was_asked_for_is_void(folder: Path, data: Path, tmp_path: Path) -> None:
    moeify.convert(folder, tmp_path / "out", experts=4, active=0.6)
    model = moeify.load(tmp_path / "out")
    assert moeify.evaluate(tmp_path / "out", data).void is False
    moeify.set_top_k(model, 3)
    moeify.resave(model, tmp_path / "out", tmp_path / "dearer")
    found = moeify.evaluate(tmp_path / "dearer", data)
    assert (found.budget, found.void) == (0.6, True)
    assert re.match(
        r"void: on this data a token uses 77\.8% of .* 29\.6% more than the recipe's budget of 60\.0%", found.verdicts[0]
    )
    assert found.to_json()["void"] is True


@pytest.mark.slow
def test_layers_are_judged_whatever_their_recipe(folder: Path, data: Path, tmp_path: Path) -> None:
    """Also where no each-layer is, and where no pass takes data."""
    done = moeify.convert(folder, tmp_path / "out", recipe="markers", experts=4, top_k=3, calibrate=data, tokens=64)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for layer in report["layers"]:
        nulls = layer["nulls"]
        assert set(nulls["errors"]) == set(nulls["fractions"]) == set(NAMES)
        assert (nulls["tokens"], nulls["fitted"], nulls["held_out"], nulls["chooses"]) == (128, 64, True, True)
        assert nulls["fractions"]["converted"] == pytest.approx(layer["active_fraction"])
        assert 0 < nulls["errors"]["oracle-routing"] < nulls["errors"]["converted"] < 1
    assert report["layer_errors"] == mean_errors(done.report.nulls.values())
    graph = moeify.open_model(folder)
    inner = (ClusterNeurons(experts=4, by=Random()), SplitExperts(), InsertRouter(top_k=2))
    plain = moeify.Pipeline((FindFeedForward(), *inner)).run(graph, [{"input_ids": ids(12, 16)}])
    assert list(plain.nulls) == [layer.path for layer in done.report.layers]
    assert plain.nulls["model.layers.0.mlp"]["errors"]["converted"] > 0.01


@pytest.mark.slow
def test_a_conversion_that_loses_to_the_static_mask_says_so_first(folder: Path, data: Path) -> None:
    """The worst experts of a random router."""
    settings = {"insert-router.by": "random"}
    report = moeify.convert(folder, recipe="random", experts=16, top_k=8, calibrate=data, settings=settings).report
    means = mean_errors(report.nulls.values())
    assert means["converted"] > means["static-mask"] > means["oracle-routing"]
    first = str(report).splitlines()[0]
    assert first == report.verdict == report.to_json()["verdict"]
    assert "loses to a static mask" in first
    assert f"{means['converted']:.3g}" in first
    assert f"{means['static-mask']:.3g}" in first
    kept = moeify.convert(folder, recipe="static", active=0.5, calibrate=data).report
    assert kept.verdict is None  # it routes nothing
    assert kept.budget == 0.5


def test_a_model_without_feed_forward_networks_is_refused() -> None:
    with pytest.raises(InputError, match="no feed-forward network"):
        moeify.convert(torch.nn.Sequential(torch.nn.Linear(4, 4)), example=(torch.randn(2, 4),))


class ReadsItsOwnWeight(torch.nn.Module):
    """A block whose forward looks at a matrix besides calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 24), torch.nn.Linear(24, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.down.weight.shape == (8, 24)
        y: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return y


def test_a_model_that_trips_over_what_was_replaced_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ConversionError, match=r"converted ReadsItsOwnWeight does not run \(AttributeError: .*'weight'.*--layers"
    ):
        moeify.convert(ReadsItsOwnWeight(), tmp_path / "out", example=(torch.randn(2, 8),), experts=4)
    assert not (tmp_path / "out").exists()


def test_a_setting_that_is_no_option_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cluster-neurons has no option 'expert': did you mean 'experts'"):
        configure(settings={"cluster-neurons.expert": 3}).build(registry())


@pytest.mark.parametrize(
    ("package", "extra"),
    [("transformers", "hf"), ("onnxruntime", "onnx"), ("onnxscript", "onnx")],
)
def test_an_absent_package_is_named_with_its_extra(
    package: str, extra: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo: Zoo = ZOO["residual-stack"]()
    source, example = (folder, None) if extra == "hf" else (zoo.model, zoo.example)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"needs the package {package}: run pip install 'moeify\[{extra}\]'"):
        moeify.convert(source, tmp_path / "out", example=example, experts=4, export=("torch", "onnx"))
    assert not (tmp_path / "out").exists()


def test_a_pipeline_by_hand_leaves_its_recipe_in_the_folder(tmp_path: Path) -> None:
    _, graph = opened("residual-stack")
    hand = configure(experts=4, top_k=2, seed=5).build(registry())
    report = hand.run(graph, seed=5)
    moeify.save(graph, tmp_path / "out", report=report)
    recipe = load_recipe(tmp_path / "out" / "recipe.toml")
    assert recipe.seed == 5
    assert recipe.build(registry()) == hand


@pytest.mark.slow
def test_peak_memory_of_a_plan_is_of_the_right_size(folder: Path, data: Path) -> None:
    plan = moeify.api.plan(folder, calibrate=data, tokens=64, experts=4)
    weights = 4 * plan.parameters_before
    assert 2 * weights < plan.peak_memory < 12 * weights  # a tiny model: 64 tokens weigh as much as it


REFUSED_EARLY: list[tuple[str, dict[str, Any], str]] = [
    ("tokens without data", {"tokens": 64}, "--tokens 64 counts calibration data"),
    ("ONNX in bfloat16", {"export": ("onnx",), "dtype": "bf16"}, "cannot run a model in bf16"),
    ("an unknown export", {"export": ("tflite",)}, "unknown export 'tflite': known are torch, onnx"),
]


@pytest.mark.parametrize(("options", "message"), [c[1:] for c in REFUSED_EARLY], ids=[c[0] for c in REFUSED_EARLY])
def test_what_cannot_work_is_refused_before_the_model_is_read(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        moeify.convert(tmp_path / "not even there", tmp_path / "out", **options)


@pytest.mark.slow
def test_data_that_no_pass_reads_judge_the_layers(folder: Path, data: Path) -> None:
    done = moeify.convert(folder, recipe="random", experts=4, calibrate=data)
    assert done.report.notes == ("no pass of recipe random looks at data: they only judge the layers",)
    assert all(layer.nulls is not None and layer.nulls["held_out"] for layer in done.report.layers)
    copied = moeify.convert(folder, recipe="upcycle", experts=2, calibrate=data)
    assert "no pass of recipe upcycle looks at data: the calibration data were left unread" in copied.report.notes
    assert all(layer.nulls is None for layer in copied.report.layers)


@pytest.mark.slow
def test_the_report_names_the_calibration_data(folder: Path, data: Path) -> None:
    found = moeify.convert(folder, recipe="markers", experts=4, calibrate=data, tokens=64).report.data
    assert found is not None
    assert found["name"] == "ids.pt"
    assert found["digest"].startswith("sha256:")
