"""Block by block: each MoE layer learns from its dense parent, and nothing else is touched."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import moeify
from converted import call, main_output
from measure.small_models import batches, llama
from moeify.errors import ConversionError, InputError, UsageError
from moeify.ir.model_graph import Batch
from moeify.layers.budget import moe_layers
from moeify.measure.divergence import divergence
from moeify.training.block_training import BlockReport
from moeify.training.distillation import distill_layers, distill_modules, teacher_loss
from zoo import ZOO, values

PATHS = ["0.inner", "1.inner"]
UPCYCLED = {"recipe": "drop-upcycle", "experts": 3}
CARVED = {"experts": 4, "top_k": 2, "settings": {"insert-router.by": "random"}}
FEW: dict[str, Any] = {"steps": 20, "checks": 2, "tokens": 64}


def stack() -> nn.Module:
    return ZOO["residual-stack"]().model


def student(**options: Any) -> nn.Module:
    return moeify.convert(stack(), example=ZOO["residual-stack"]().example, **(options or UPCYCLED)).model


def data(count: int = 4, rows: int = 48) -> list[Batch]:
    return [(values(rows, 16, seed=seed),) for seed in range(count)]


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    """The modules, by two parts of their names, whose tensors are not what they were."""
    return {".".join(n.split(".")[:2]) for n, value in model.state_dict().items() if not torch.equal(value, before[n])}


def rate(value: float) -> Any:
    return lambda parameters: torch.optim.AdamW(parameters, lr=value, weight_decay=0.0)


@pytest.mark.parametrize("options", [UPCYCLED, CARVED], ids=["upcycled", "carved"])
@pytest.mark.parametrize("prefix", ["dense", "converted"])
def test_every_block_comes_nearer_to_its_parent_and_so_does_the_model(options: dict[str, Any], prefix: Any) -> None:
    model, dense = student(**options), stack()
    fresh = [(values(100, 16, seed=9),)]
    before = divergence(dense, model, fresh).relative_error
    reports = distill_layers(model, dense, data(), prefix=prefix, **FEW)
    assert [report.path for report in reports] == PATHS
    for report in reports:
        assert report.after < 0.9 * report.before
        assert (report.steps, report.resumed) == (20, False)
    assert divergence(dense, model, fresh).relative_error < before


def test_what_stands_on_a_frozen_core_learns_and_the_core_stays() -> None:
    model, dense = student(recipe="lora-experts", experts=3), stack()
    with torch.no_grad():
        for path in PATHS:
            dense.get_parameter(f"{path}.0.weight").mul_(1.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for report in distill_layers(model, dense, data(), **FEW):
        assert report.after < report.before
    trained = {name.split(".")[2] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert trained == {"lora", "router"}


def test_the_loss_is_the_squared_distance_from_the_dense_ffn_on_held_out_batches() -> None:
    model, dense, given = student(), stack(), data()
    seen: dict[str, list[Tensor]] = {}
    for path in PATHS:
        dense.get_submodule(path).register_forward_hook(
            lambda module, args, y, path=path: seen.setdefault(path, []).append(torch.cat((args[0], y), -1))
        )
    with torch.no_grad():
        call(dense, given[-1])
    reports = distill_layers(model, stack(), given, held_out=0.25, **FEW)
    for report in reports:
        x, y = seen[report.path][0].tensor_split(2, -1)
        layer = moe_layers(model)[report.path]
        with torch.no_grad():
            expected = (layer(x) - y).square().sum() / y.square().sum()
        assert report.after == pytest.approx(float(expected), rel=1e-4)


def test_converted_blocks_before_one_are_those_that_were_trained() -> None:
    model = student()
    reports = distill_layers(model, stack(), data(), prefix="converted", held_out=0.25, **FEW)
    hybrid, x = stack(), data()[-1]
    first = copy.deepcopy(moe_layers(model)["0.inner"])
    inputs: list[Tensor] = []
    hybrid.get_submodule("1.inner").register_forward_hook(lambda module, args, y: inputs.append(args[0]))
    target = hybrid.get_submodule("1.inner")
    hybrid.set_submodule("0.inner", first)
    with torch.no_grad():
        call(hybrid, x)
        expected = (moe_layers(model)["1.inner"](inputs[0]) - target(inputs[0])).square().sum() / target(
            inputs[0]
        ).square().sum()
    assert reports[1].after == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("distil", [distill_layers, distill_modules])
def test_the_parameters_of_one_block_are_trained_and_no_others(distil: Any) -> None:
    model, dense = student(), stack()
    before, of_dense = copy.deepcopy(model.state_dict()), copy.deepcopy(dense.state_dict())
    options = {"task": class_task, "steps": 4, "checks": 1} if distil is distill_modules else FEW
    (report,) = distil(model, dense, data(), layers="1.*", **options)
    assert report.path == "1.inner"
    assert changed(before, model) == {"1.inner"}
    assert not changed(of_dense, dense)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_blocks_in_any_order_are_the_same_blocks() -> None:
    found = []
    for order in ("forward", "backward", ["1.inner", "0.inner"]):
        model = student()
        reports = distill_layers(model, stack(), data(), order=order, **FEW)
        assert [report.path for report in reports] == (PATHS if order == "forward" else PATHS[::-1])
        found.append(model.state_dict())
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


def test_the_seed_decides_and_torchs_generator_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    models = []
    for seed in (0, 0, 1):
        models.append(student())
        distill_layers(models[-1], stack(), data(), seed=seed, **FEW)
    assert torch.equal(torch.random.get_rng_state(), state)
    first, again, other = (model.state_dict()["0.inner.up"] for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_modes_come_back() -> None:
    model, dense = student().train(), stack().train()
    distill_layers(model, dense, data(), **FEW)
    assert all(module.training for module in (*model.modules(), *dense.modules()))


def test_what_gets_worse_is_stopped_and_undone() -> None:
    model = student()
    before = copy.deepcopy(model.state_dict())
    reports = distill_layers(model, stack(), data(), steps=100, checks=10, patience=2, tokens=16, optimizer=rate(3.0))
    assert [(r.steps, r.kept, r.after == r.before) for r in reports] == [(20, 0, True)] * 2
    assert not changed(before, model)


def test_a_loss_that_is_not_finite_is_an_error_and_the_best_weights_stay() -> None:
    model = student()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConversionError, match=r"^0\.inner: the loss is (nan|inf) after \d+ steps: choose a lower"):
        distill_layers(model, stack(), data(), steps=50, checks=1, tokens=16, optimizer=rate(1e30))
    assert not changed(before, model)


class EndedError(Exception):
    pass


def ended(task: str, done: int, total: int | None) -> None:
    """A progress that ends the run after its first block."""
    if done == 1:
        raise EndedError


@pytest.mark.parametrize("prefix", ["dense", "converted"])
def test_it_goes_on_after_the_last_finished_block(prefix: Any, tmp_path: Path) -> None:
    whole = student()
    expected = distill_layers(whole, stack(), data(), prefix=prefix, **FEW)
    with pytest.raises(EndedError):
        distill_layers(student(), stack(), data(), prefix=prefix, folder=tmp_path / "blocks", progress=ended, **FEW)
    assert len(list((tmp_path / "blocks").iterdir())) == 1
    model = student()
    reports = distill_layers(model, stack(), data(), prefix=prefix, folder=tmp_path / "blocks", **FEW)
    assert [report.resumed for report in reports] == [True, False]
    assert [(r.before, r.after) for r in reports] == [(r.before, r.after) for r in expected]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_blocks_of_other_settings_data_or_weights_are_not_taken_over(tmp_path: Path) -> None:
    def resumed(model: nn.Module, given: list[Batch], **options: Any) -> bool:
        options = {**FEW, "layers": "0.*", "folder": tmp_path, **options}
        return distill_layers(model, stack(), given, **options)[0].resumed

    assert not resumed(student(), data())
    assert resumed(student(), data())
    assert not resumed(student(), data(), seed=3)
    assert not resumed(student(), data(5))
    other = student()
    with torch.no_grad():
        moe_layers(other)["0.inner"].up.mul_(1.1)
    assert not resumed(other, data())
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    assert not resumed(student(), data())


def test_tokens_of_a_single_batch_are_parted() -> None:
    (report, _) = distill_layers(student(), stack(), data(1), **FEW)
    assert report.after < report.before


@pytest.mark.parametrize("name", ["llama", "bare-block", "encoder-pre-gelu", "conv-2d"])
def test_every_way_of_rewriting(name: str) -> None:
    """And dropout in training, padding, labels beside the inputs, and features in dim 1."""
    zoo = ZOO[name]()
    model = moeify.convert(zoo.model, example=zoo.example, experts=3, recipe="drop-upcycle").model
    given: list[Batch] = [zoo.example] * 3
    if name == "llama":
        assert isinstance(zoo.example, dict)
        mask = torch.ones_like(zoo.example["input_ids"])
        mask[0, :2] = 0
        given = [{**zoo.example, "attention_mask": mask, "labels": zoo.example["input_ids"]}] * 3
        given = [{n: v for n, v in batch.items() if n in ("input_ids", "attention_mask", "labels")} for batch in given]  # type: ignore[union-attr]  # dicts
    reports = distill_layers(model, ZOO[name]().model, given, **FEW)
    assert all(report.after < report.before for report in reports)


@pytest.mark.slow
def test_a_dense_model_on_disk(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "dense")  # type: ignore[operator]  # a transformers model
    model = moeify.convert(tmp_path / "dense", experts=3, recipe="drop-upcycle").model
    reports = distill_layers(model, tmp_path / "dense", batches(3), **FEW)
    assert all(report.after < report.before for report in reports)


def class_task(output: Tensor, batch: Batch) -> Tensor:
    """Every row is of class 0."""
    return F.cross_entropy(output, torch.zeros(len(output), dtype=torch.int64))


def test_an_optimizer_of_ones_own_sees_the_parameters_of_one_block() -> None:
    seen: list[int] = []

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        seen.append(len(parameters))
        return torch.optim.SGD(parameters, lr=0.1)

    model = student()
    distill_layers(model, stack(), data(), optimizer=make, **FEW)
    assert seen == [len(list(layer.parameters())) for layer in moe_layers(model).values()]


def test_m2mkd_the_loss_is_of_the_task_and_of_the_teacher() -> None:
    """One block stands in the dense model; its teacher is the dense model itself."""
    model, dense, given = student(), stack(), data()
    reports = distill_modules(
        model, dense, given, task=class_task, alpha=0.3, temperature=2.0, steps=6, checks=2, held_out=0.5, layers="0.*"
    )
    hybrid = stack()
    hybrid.set_submodule("0.inner", moe_layers(model)["0.inner"])
    losses = []
    with torch.no_grad():
        for batch in given[-2:]:
            ours, theirs = (main_output(call(m, batch)) for m in (hybrid, dense))
            q, p = (logits / 2.0 for logits in (ours, theirs))
            divergence = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum()
            losses.append(0.7 * class_task(ours, batch) + 0.3 * 4.0 * divergence / ours.numel())
    assert reports[0].after == pytest.approx(float(sum(losses)) / 2, rel=1e-4)
    assert reports[0].after < reports[0].before


def test_m2mkd_what_the_model_does_not_take_is_for_the_task() -> None:
    def task(output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output, batch[1] if isinstance(batch, tuple) else batch["kind"])

    pairs: list[Batch] = [(x, torch.zeros(len(x), dtype=torch.int64)) for x, *_ in data()]
    named: list[Batch] = [{"input": x, "kind": y} for x, y in pairs]
    few: dict[str, Any] = {"steps": 3, "checks": 1, "layers": "1.*"}
    expected = distill_modules(student(), stack(), data(), task=class_task, **few)
    assert distill_modules(student(), stack(), pairs, task=task, **few) == expected
    assert distill_modules(student(), stack(), named, task=task, **few) == expected


@pytest.mark.slow
def test_m2mkd_brings_a_language_model_nearer_to_its_dense_one() -> None:
    model = moeify.convert(llama(), example=batches(1)[0], recipe="drop-upcycle", experts=3).model
    before = divergence(llama(), model, batches(1, seed=5)).kl
    given = [{**batch, "labels": batch["input_ids"]} for batch in batches(8, rows=8) if isinstance(batch, dict)]
    reports = distill_modules(model, llama(), given, alpha=0.9, per="token", steps=21, checks=3, order="backward")
    after = divergence(llama(), model, batches(1, seed=5)).kl
    assert all(report.after < report.before for report in reports)
    assert before is not None
    assert after is not None
    assert after < before


@pytest.mark.slow
def test_m2mkd_padding_does_not_count() -> None:
    """What stands under the mask at the end of a causal model's row changes nothing."""
    found: list[BlockReport] = []
    for pad in (3, 30):
        model = moeify.convert(llama(), example=batches(1)[0], recipe="drop-upcycle", experts=3).model
        given: list[Batch] = []
        for batch in batches(2, rows=1):
            assert isinstance(batch, dict)
            ids, mask = batch["input_ids"].clone(), torch.ones_like(batch["input_ids"])
            ids[:, -2:], mask[:, -2:] = pad, 0
            given.append({"input_ids": ids, "attention_mask": mask})
        found += distill_modules(model, llama(), given, alpha=1.0, steps=2, checks=1, layers="*.1.*")
    assert found[0].before == pytest.approx(found[1].before, rel=1e-5)


@pytest.mark.parametrize(("per", "parts"), [("logit", 12), ("token", 3)])
def test_the_teachers_loss(per: Any, parts: int) -> None:
    student_logits, teacher = values(3, 4, seed=1).double(), values(3, 4, seed=2).double()
    p, q = (teacher / 3).softmax(-1), (student_logits / 3).softmax(-1)
    expected = 9 * (p * (p / q).log()).sum() / parts
    torch.testing.assert_close(teacher_loss(student_logits, teacher, 3.0, per).double(), expected, rtol=1e-5, atol=0)
    assert float(teacher_loss(teacher, teacher)) == 0


def once(given: list[Batch]) -> Iterator[Batch]:
    yield from given


REFUSED: list[tuple[str, Any, type[Exception], str]] = [
    ("no steps", lambda m, d: distill_layers(m, d, data(), steps=0), UsageError, "steps is 0: choose 1 or more"),
    ("an order of its own", lambda m, d: distill_layers(m, d, data(), order="random"), UsageError, "order is 'random': choose"),
    ("an unknown block", lambda m, d: distill_layers(m, d, data(), order=["0.iner"]), UsageError, "names '0.iner', .* mean '0"),
    ("a glob of none", lambda m, d: distill_layers(m, d, data(), layers="x"), UsageError, "no MoE layer matches 'x'"),
    ("all held out", lambda m, d: distill_layers(m, d, data(), held_out=1.0), UsageError, "held_out is 1.0: choose a share"),
    (
        "an unknown prefix",
        lambda m, d: distill_layers(m, d, data(), prefix="moe"),  # type: ignore[arg-type]  # wrong on purpose
        UsageError,
        "prefix 'moe': choose",
    ),
    ("no data", lambda m, d: distill_layers(m, d, []), InputError, "the data holds no batch to distil on"),
    (
        "one row of data",
        lambda m, d: distill_layers(m, d, data(1, rows=1)),
        InputError,
        "leaves 0 tokens to train on",
    ),
    ("the dense model itself", lambda m, d: distill_layers(d, d, data()), UsageError, "Sequential has no MoE layers: convert"),
    ("no dense model", lambda m, d: distill_layers(m, m, data()), InputError, "is not the dense model of 0.inner: .* in place"),
    ("one batch", lambda m, d: distill_modules(m, d, data(1)), InputError, "holds 1 batches: give two or more"),
    ("no task", lambda m, d: distill_modules(m, d, data()), UsageError, "the model gives no loss for the batches"),
    ("a wrong alpha", lambda m, d: distill_modules(m, d, data(), alpha=2), UsageError, "alpha is 2, temperature 1.0"),
]


@pytest.mark.sampled
@pytest.mark.parametrize(("attempt", "error", "message"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_does_not_fit_is_refused_and_nothing_changes(attempt: Any, error: type[Exception], message: str) -> None:
    model = student()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        attempt(model, stack())
    assert not changed(before, model)


def test_layers_that_merge_by_sequence_are_refused() -> None:
    model = student()
    moeify.set_smear(model)
    with pytest.raises(UsageError, match=r"^0\.inner: merges experts by sequence"):
        distill_layers(model, stack(), data())


def test_batches_may_come_once() -> None:
    assert distill_layers(student(), stack(), once(data()), order="backward", **FEW)[0].after > 0
