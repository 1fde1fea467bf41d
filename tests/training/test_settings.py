"""Setting how a model is trained, and the sum of its losses."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import moeify
from layers.stochastic_layers import stochastic_layer
from moeify.errors import UsageError
from moeify.layers.budget import moe_layers
from moeify.layers.model_hooks import watcher_of
from moeify.layers.router_losses import load_balance, probabilities, z_loss
from moeify.layers.training_door import TrainingDoor
from moeify.training.settings import auxiliary_loss, set_training
from training.trained_models import HIDDEN, Stack, gradients, moe_layer, values

BOTH: dict[str, Any] = {"load_balance": 0.1, "z_loss": 0.01}


def by_hand(model: Stack, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """The sum of both losses of both layers."""
    total = torch.zeros(())
    for layer in (model.first, model.second):
        routing = layer.route(x)
        balance = load_balance(probabilities(routing.scores, layer.config.gate_rule), routing.chosen, weight)
        total = total + 0.1 * balance + 0.01 * z_loss(routing.scores, weight)
        x = x + layer(x)
    return total


def test_it_is_the_weighted_sum_over_layers_with_its_gradient() -> None:
    model, x = Stack(), values(5, 7, HIDDEN)
    wanted = by_hand(model, x)
    torch.autograd.backward(wanted)
    truth = gradients(model)
    set_training(model, **BOTH)
    model(x)
    found = auxiliary_loss(model)
    torch.testing.assert_close(found, wanted)
    torch.autograd.backward(found)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, truth[name], msg=name)
    assert truth["first.router.weight"].abs().max() > 0


def test_it_teaches_an_even_load() -> None:
    model, x = Stack(), values(64, HIDDEN)
    with torch.no_grad():
        dict(model.named_parameters())["first.router.weight"][0] += 3 * x.mean(0).sign()
    set_training(model, load_balance=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    seen = []
    for _ in range(60):
        model(x)
        loss = auxiliary_loss(model)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < seen[0] - 0.1
    assert seen[-1] < 2.05


def test_unset_and_in_eval_every_output_is_bitwise_the_same() -> None:
    x = values(9, HIDDEN)
    model = Stack()
    trained, evaluated = model(x), model.eval()(x)
    set_training(model, **BOTH)
    assert torch.equal(model.eval()(x), evaluated)
    with pytest.raises(UsageError, match="no MoE layer with a loss ran in training mode"):
        auxiliary_loss(model)
    assert torch.equal(model.train()(x), trained)  # these losses change no output in training either
    set_training(model)
    assert torch.equal(model(x), trained)
    assert all(layer.training_state is None for layer in moe_layers(model).values())
    with pytest.raises(UsageError, match="no auxiliary loss is set"):
        auxiliary_loss(model)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("factor", [True, 0.25])
def test_attached_it_needs_no_sum_whatever_checkpoints_there_are(factor: bool | float, reentrant: bool) -> None:
    model, x = Stack(), values(9, HIDDEN)
    set_training(model, **BOTH)
    (model(x).square().sum() + float(factor) * auxiliary_loss(model)).backward()
    wanted, value = gradients(model), auxiliary_loss(model)
    set_training(model, **BOTH, attach=factor)
    leaf = x.clone().requires_grad_()

    def whole() -> Tensor:
        y: Tensor = checkpoint(model, leaf, use_reentrant=reentrant)
        return y

    for run in (lambda: model(x), whole):
        torch.autograd.backward(run().square().sum())
        torch.testing.assert_close(auxiliary_loss(model), value)
        assert not auxiliary_loss(model).requires_grad
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, wanted[name], msg=name)


class Checkpointed(Stack):
    """Each layer runs again in backward."""

    reentrant = False

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        for layer in (self.first, self.second):
            x = x + checkpoint(layer, x, use_reentrant=self.reentrant)
        y: Tensor = self.head(x)
        return y


def test_checkpointed_blocks_are_noted_once() -> None:
    plain, model, x = Stack(), Checkpointed(), values(9, HIDDEN)
    for each in (plain, model):
        set_training(each, **BOTH)
        (each(x).square().sum() + auxiliary_loss(each)).backward()
    torch.testing.assert_close(auxiliary_loss(model), auxiliary_loss(plain))
    wanted = gradients(plain)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)


def test_a_reentrant_checkpoint_is_told_to_attach() -> None:
    model, x = Checkpointed(), values(9, HIDDEN).requires_grad_()
    model.reentrant = True
    set_training(model, **BOTH)
    model(x)
    with pytest.raises(UsageError, match=r"ran without recording gradients .* use set_training\(\.\.\., attach=True\)"):
        auxiliary_loss(model)
    with torch.no_grad():
        assert auxiliary_loss(model) > 0


def test_a_layer_that_runs_twice_counts_twice() -> None:
    layer, x = moe_layer(), values(9, HIDDEN)
    once, twice = nn.Sequential(layer), nn.Sequential(layer, layer)
    set_training(once, z_loss=1.0)
    once(x)
    first = auxiliary_loss(once)
    set_training(twice, z_loss=1.0)
    y = twice[0](x)
    twice(x)
    torch.testing.assert_close(auxiliary_loss(twice), first + z_loss(layer.route(y).scores))


def test_padding_does_not_count() -> None:
    model, x = Stack(), values(2, 5, HIDDEN)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    set_training(model, **BOTH)
    model(x, attention_mask=mask)
    found = auxiliary_loss(model)
    torch.testing.assert_close(found, by_hand(model, x, mask.flatten()))
    torch.testing.assert_close(found, by_hand(model, x[mask != 0]))
    model(x, attention_mask=torch.zeros_like(mask))
    assert auxiliary_loss(model) == 0


@pytest.mark.slow
def test_each_forward_begins_anew_and_nothing_is_kept() -> None:
    model = Stack()
    set_training(model, **BOTH)
    x = values(9, HIDDEN)
    model(x)
    first = auxiliary_loss(model)
    model(values(9, HIDDEN, seed=4))
    model(x)
    assert torch.equal(auxiliary_loss(model), first)
    y = model(x)
    node = weakref.ref(y)
    records = weakref.ref(model.first.training_state.last)  # type: ignore[union-attr]
    del y
    model.eval()(x)
    gc.collect()
    assert node() is None
    assert records() is None


def test_a_model_is_copied_and_pickled_after_a_forward() -> None:
    model, x = Stack(), values(9, HIDDEN)
    set_training(model, **BOTH)
    model(x)
    value = auxiliary_loss(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(UsageError, match="no MoE layer with a loss ran"):
            auxiliary_loss(other)
        other(x)
        assert torch.equal(auxiliary_loss(other), value)
        assert watcher_of(other, TrainingDoor) is not watcher_of(model, TrainingDoor)
    assert torch.equal(auxiliary_loss(model), value)


def test_some_layers_only() -> None:
    model, x = Stack(), values(9, HIDDEN)
    set_training(model, layers="sec*", z_loss=1.0)
    model(x)
    torch.testing.assert_close(auxiliary_loss(model), z_loss(model.second.route(x + model.first(x)).scores))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_balance": -1}, "load_balance is -1: choose a weight from 0, such as 0.01"),
        ({"z_loss": float("nan")}, "z_loss is nan: choose a weight from 0"),
        ({"z_loss": "much"}, "z_loss is 'much': choose a weight"),
        ({"jitter": 1.0}, "jitter is 1.0: choose a number from 0 to less than 1"),
        ({"gating_dropout": 1}, "gating_dropout is 1: choose a number from 0 to less than 1"),
        ({"router_noise": -0.1}, "router_noise is -0.1: choose a standard deviation"),
        ({"bias_rate": None}, "bias_rate is None: choose a step"),
        ({"capacity_factor": 0}, "capacity_factor is 0: choose a number above 0, such as 1.25, or None"),
        ({"sparsity": 1, "sparsity_floor": float("inf")}, "sparsity_floor is inf: choose a finite number"),
        ({"drop": "last"}, "drop is 'last': choose one of gate, position"),
        (
            {"router_gradient": "reinforce"},
            "router_gradient is 'reinforce': choose one of None, straight",
        ),
        ({"attach": True}, "attach is set but no loss is"),
        ({"load": 0.1}, "load is a smooth estimate only where there is noise: set router_noise"),
        ({"load": 0.1, "router_noise": 0.1, "bias_rate": 0.1}, "load estimates a choice without selection bias"),
        ({"sparsity_floor": -10.0}, "sparsity_floor belongs to sparsity"),
        ({"router_gradient": "sparse-mixer"}, "sparse-mixer draws among the experts that jitter could reach: set jitter"),
        (
            {"router_gradient": "sparse-mixer", "jitter": 0.1, "gating_dropout": 0.1},
            "sparse-mixer draws its expert: leave router_noise, bias_rate and gating_dropout out",
        ),
        (
            {"router_gradient": "sparse-mixer", "jitter": 0.1},
            "first: sparse-mixer draws one expert by its softmax gate; here gate_rule is one, top_k 2 and threshold None",
        ),
        ({"attach": -2, "z_loss": 1}, "attach is -2: choose True, False, or a factor"),
        ({"layers": "third"}, "no MoE layer matches 'third'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    model = Stack()
    set_training(model, **BOTH)
    before = [layer.training_state for layer in moe_layers(model).values()]
    with pytest.raises(UsageError) as error:
        set_training(model, **options)
    assert str(error.value).startswith(message)
    assert [layer.training_state for layer in moe_layers(model).values()] == before


def test_options_that_the_layer_does_not_bear() -> None:
    softmax = Stack(gate_rule="softmax", top_k=1, normalize=True)
    mixer: dict[str, Any] = {"router_gradient": "sparse-mixer", "jitter": 0.1}
    with pytest.raises(UsageError, match="first: sparse-mixer learns nothing from gates that are always 1"):
        set_training(softmax, **mixer)
    with pytest.raises(UsageError, match="first: straight-through is for gates of 1; the gate rule softmax has"):
        set_training(softmax, router_gradient="straight-through")
    with pytest.raises(UsageError, match="first: load estimates a choice of the best, and top_k is None"):
        set_training(Stack(top_k=None), load=0.1, router_noise=0.1)
    model = Stack(gate_rule="softmax", top_k=1)
    set_training(model, **mixer)
    moeify.set_top_k(model, 2)
    with pytest.raises(UsageError, match="sparse-mixer draws one expert, and top_k is 2 now"):
        model(values(9, HIDDEN))


def test_a_compiled_model_is_the_model_within() -> None:
    model = Stack()
    compiled: Any = torch.compile(model)
    set_training(compiled, layers="first", z_loss=1.0)
    assert model.first.training_state is not None
    model(values(9, HIDDEN))
    assert torch.equal(auxiliary_loss(compiled), auxiliary_loss(model))


def test_routers_that_learn_nothing_have_no_losses() -> None:
    bare = nn.Sequential(moe_layer(), moe_layer(router=None, top_k=None))
    with pytest.raises(UsageError, match=r"^1: z_loss needs a router that learns, and this layer has no router"):
        set_training(bare, z_loss=1)
    assert bare[0].training_state is None  # all layers change or none
    with pytest.raises(UsageError, match=r"^the MoE layer: load_balance needs .* and this layer draws its experts"):
        set_training(stochastic_layer(), load_balance=1)
    with pytest.raises(UsageError, match="Linear has no MoE layers"):
        auxiliary_loss(nn.Linear(2, 2))


def test_the_names_are_public() -> None:
    assert moeify.set_training is set_training
    assert moeify.auxiliary_loss is auxiliary_loss


def test_a_probability_of_sigmoid_scores_sums_to_one() -> None:
    p = probabilities(values(5, 4), "sigmoid")
    torch.testing.assert_close(p.sum(-1), torch.ones(5))
    assert torch.equal(p.argmax(-1), values(5, 4).argmax(-1))
    assert load_balance(torch.full((8, 4), 0.25), torch.eye(4).repeat(2, 1).bool()) == 1
    one = torch.eye(4)[:1].expand(8, 4)
    assert load_balance(one, one.bool()) == 4
    assert replace(moe_layer().config, top_k=1).top_k == 1
