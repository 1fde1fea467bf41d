"""One merged expert a sequence: against the reference, its gradients, what it is told of sequences, and whole models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import moeify
from converted import call, converted, distance, main_output
from layers.stochastic_layers import stochastic_layer
from moe_reference import smear as reference
from moeify.errors import UsageError
from moeify.export.onnx.exporting import export_onnx
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.budget import moe_layers
from moeify.layers.moe_layer import MoELayer
from moeify.measure.load import expert_load
from moeify.runtime.session import session
from zoo import ZOO

HIDDEN, OUTPUT, SIZE = 6, 5, 4

#: caption -> options of the config
SHAPES: dict[str, dict[str, Any]] = {
    "two-matrix": {},
    "gated, with all biases": {"gated": True, "up_bias": True, "gate_bias": True, "output_bias": True, "activation": "silu"},
    "beside a shared expert": {"shared": 3, "up_bias": True},
    "with a low-rank term": {"rank": 2, "output_bias": True},
    "whatever the choice": {"top_k": 1, "gate_rule": "softmax", "normalize": True, "selection_bias": True, "idle": True},
}


def layer_of(
    experts: int = 3, *, shared: int = 0, router: RouterConfig | None = None, dtype: Any = torch.float64, **options: Any
) -> MoELayer:
    offsets = tuple(range(shared, shared + SIZE * experts + 1, SIZE))
    options = {"activation": "gelu", "gated": False, "smear": True, **options}
    config = MoEConfig(HIDDEN, OUTPUT, offsets=offsets, router=router or RouterConfig("linear"), **options)
    layer, generator = MoELayer(config, dtype=dtype), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (*layer.parameters(), *layer.buffers()):
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return layer.train().eval()


def inputs(*lead: int, seed: int = 1) -> Tensor:
    return torch.randn(*lead, HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected(layer: MoELayer, x: Tensor, counts: Tensor | None = None) -> Tensor:
    """The reference's y of x [sequences, tokens, hidden]."""
    assert layer.router is not None
    names = ("up", "down", "gate", "up_bias", "gate_bias", "output_bias", "low_rank_in", "low_rank_out")
    arrays = {name: value.detach().numpy() for name in names if (value := getattr(layer, name)) is not None}
    y = reference(
        x.numpy(), layer.router(x).detach().numpy(), offsets=np.array(layer.config.offsets), activation=layer.config.activation,
        counts=None if counts is None else counts.numpy(), **arrays,
    )  # fmt: skip
    return torch.from_numpy(y)


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_it_equals_the_reference(options: dict[str, Any]) -> None:
    layer, x = layer_of(**options), inputs(3, 7)
    torch.testing.assert_close(layer(x), expected(layer, x), rtol=0, atol=1e-12 * float(layer(x).detach().abs().max()))
    half = copy.deepcopy(layer).bfloat16()
    assert distance(half(x.bfloat16()).detach(), layer(x).detach()) < 3e-2


@pytest.mark.parametrize("kind", ["average-key", "mlp"])
def test_any_router_that_computes_scores(kind: Any) -> None:
    layer, x = layer_of(router=RouterConfig(kind, width=4 if kind == "mlp" else None, activation="tanh")), inputs(2, 5)
    torch.testing.assert_close(layer(x), expected(layer, x))
    torch.testing.assert_close(layer.train()(x), layer.eval()(x))


@pytest.mark.parametrize(
    ("lead", "cut"), [((), (1, 1)), ((4,), (4, 1)), ((2, 3), (2, 3)), ((2, 3, 2), (2, 6)), ((0, 3), (0, 3)), ((3, 0), (3, 0))]
)
def test_a_sequence_is_an_index_of_the_first_axis(lead: tuple[int, ...], cut: tuple[int, int]) -> None:
    layer, x = layer_of(shared=2, output_bias=True), inputs(*lead)
    found = layer(x)
    assert found.shape == (*lead, OUTPUT)
    if x.numel():
        torch.testing.assert_close(found.view(*cut, OUTPUT), expected(layer, x.view(*cut, HIDDEN)))
    assert layer.route(x).chosen.shape == (x.shape[:-1].numel(), 3)


def test_sequences_do_not_see_each_other_and_all_tokens_of_one_do() -> None:
    layer, x = layer_of(), inputs(2, 5)
    before = layer(x)
    x[1, 4] += 1.0
    after = layer(x)
    assert torch.equal(after[0], before[0])
    assert (after[1] != before[1]).any(-1).all()  # the first token hears the last: it is not causal


def test_experts_that_agree_are_one() -> None:
    layer, x = layer_of(4), inputs(2, 5)
    with torch.no_grad():
        for value in (layer.up, layer.down):
            value.copy_(value[:SIZE].repeat(4, 1))
    one = MoELayer(MoEConfig(HIDDEN, OUTPUT, "gelu", False, (0, SIZE)), dtype=torch.float64)
    one.load_state_dict({"up": layer.up[:SIZE], "down": layer.down[:SIZE]})
    torch.testing.assert_close(layer(x), one(x))


def test_gradients_reach_router_and_experts() -> None:
    layer = layer_of(2, gated=True, activation="silu", up_bias=True, shared=2).train()
    x = inputs(2, 3).requires_grad_()
    values = [x, *layer.parameters()]
    assert torch.autograd.gradcheck(lambda *_: layer(x), values)
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 1e-6, name


def test_dropout_of_hidden_values_is_in_training_alone() -> None:
    layer, x = layer_of(hidden_dropout=0.5), inputs(2, 5)
    assert torch.equal(layer(x), layer(x))
    assert not torch.equal(layer.train()(x), layer(x))


class Model(nn.Module):
    """Ids -> the layer's output, on tokens as they are or all in one axis."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        self.embedding = nn.Embedding(50, HIDDEN, dtype=torch.float64)
        self.moe = layer_of(smear=False)

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        y: Tensor = self.moe(x.flatten(0, 1) if self.flat else x)
        return y.view(*x.shape[:2], OUTPUT)


def model_of(*, flat: bool) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(flat=flat).eval()


def ids(batch: int, tokens: int) -> Tensor:
    return torch.randint(50, (batch, tokens), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("flat", [False, True])
def test_a_model_says_which_tokens_make_a_sequence_and_which_are_padding(flat: bool) -> None:
    model, given = model_of(flat=flat), ids(2, 6)
    moeify.set_smear(model)
    mask = torch.ones_like(given)
    mask[1, :2] = 0
    whole = model(given, attention_mask=mask)
    x = model.embedding(given).detach()
    torch.testing.assert_close(whole, expected(model.moe, x, mask.bool()))
    torch.testing.assert_close(model(given), expected(model.moe, x))
    torch.testing.assert_close(whole[1:, 2:], model(given[1:, 2:]))  # padding changes nothing
    assert torch.equal(model(input_ids=given, attention_mask=mask), whole)


def test_a_mask_is_heard_without_ids_too() -> None:
    model, given = model_of(flat=False), ids(2, 6)
    moeify.set_smear(model)
    mask = torch.ones_like(given)
    mask[1, :2] = 0
    x = model.embedding(given).detach()
    assert torch.equal(model(inputs_embeds=x, attention_mask=mask), model(given, attention_mask=mask))


def test_a_sequence_of_padding_alone_has_no_merged_expert() -> None:
    model, given = model_of(flat=False), ids(2, 6)
    moeify.set_smear(model)
    mask = torch.ones_like(given)
    mask[1] = 0
    assert (model(given, attention_mask=mask)[1] == 0).all()


def test_it_is_set_on_all_layers_or_none_and_undone() -> None:
    zoo, graph = converted("llama", top_k=2)
    routed = main_output(zoo.run())
    moeify.set_smear(graph.model)
    smeared = main_output(zoo.run())
    assert distance(smeared, routed) > 1e-2
    moeify.set_smear(graph.model, False, layers="*.1.*")
    assert [layer.config.smear for layer in moe_layers(graph.model).values()] == [True, False]
    moeify.set_smear(graph.model, False)
    assert torch.equal(main_output(zoo.run()), routed)


def test_all_experts_count_as_active() -> None:
    zoo, graph = converted("llama", top_k=1)
    moeify.set_smear(graph.model)
    load = expert_load(graph.model, [zoo.example])[0]
    assert (load.mean_on, load.dead) == (3, ())
    config = next(iter(moe_layers(graph.model).values())).config
    assert load.active_fraction == pytest.approx(config.active_fraction(config.dense_neurons))
    assert config.active_fraction(config.dense_neurons) > 1


def stack() -> nn.Module:
    return ZOO["residual-stack"]().model


@pytest.mark.slow
def test_a_smearing_model_trains_saves_loads_and_exports(tmp_path: Path) -> None:
    zoo = ZOO["residual-stack"]()
    moeify.convert(zoo.model, tmp_path / "out", example=zoo.example, experts=4, settings={"insert-router.by": "random"})
    model = moeify.load(tmp_path / "out", factory=stack).train()
    moeify.set_smear(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = main_output(call(model, zoo.example)).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        trained = main_output(call(model.eval(), zoo.example))
    moeify.resave(model, tmp_path / "out", tmp_path / "trained")
    again = moeify.load(tmp_path / "trained", factory=stack)
    with torch.no_grad():
        assert torch.equal(main_output(call(again, zoo.example)), trained)
    report = export_onnx(again, zoo.example, tmp_path / "m.onnx")
    assert report.moe_layers == ()
    runtime = session(tmp_path / "m.onnx", threads=1)
    assert isinstance(zoo.example, tuple)
    (found,) = runtime.run(None, {runtime.get_inputs()[0].name: zoo.example[0].numpy()})
    assert distance(torch.from_numpy(found), trained) < 1e-5


def test_compiled_it_gives_the_same() -> None:
    layer, x = layer_of(gated=True, shared=2), inputs(3, 5)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: stochastic_layer(),
            r"^the MoE layer: smear takes the means of router probabilities, and this layer has no",
        ),
        (lambda: MoELayer(MoEConfig(4, 4, "relu", False, (0, 2, 4))), "smear takes the means of router probabilities"),
        (
            lambda: MoELayer(MoEConfig(4, 4, "relu", False, (0, 2, 5), RouterConfig("linear"))),
            "smear merges experts of one size: these have 2 to 3 rows",
        ),
        (lambda: nn.Linear(2, 2), "Linear has no MoE layers: convert it first"),
    ],
)
def test_what_cannot_be_merged_is_refused(model: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        moeify.set_smear(model())


def test_training_of_a_choice_is_refused_where_there_is_none() -> None:
    model = nn.Sequential(layer_of())
    with pytest.raises(UsageError, match=r"^0: runs one mean of its experts \(SMEAR\) and chooses none"):
        moeify.set_training(model, load_balance=0.01)
    moeify.set_smear(model, False)
    moeify.set_training(model, load_balance=0.01)
    with pytest.raises(UsageError, match=r"^0: its choice is trained by set_training: set_training\(model\) ends"):
        moeify.set_smear(model)
    moeify.set_training(model)
    moeify.set_smear(model)
