"""torch.compile: what training does to a layer is in the graph with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moeify.training.expert_load import ExpertLoad
from moeify.training.settings import auxiliary_loss, set_training
from training.trained_models import HIDDEN, gradients, moe_layer, values

LOSSES: dict[str, Any] = {"load_balance": 0.05, "z_loss": 0.01, "importance": 0.1}


class Checkpointed(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.layer, x, use_reentrant=False)
        return y


def check(plain: nn.Module, model: nn.Module, compiled: Any, attached: bool) -> None:
    """Both give the same losses, gradients and loads on two batches."""
    loads = ExpertLoad(plain), ExpertLoad(model)
    for seed in (1, 2):
        found = []
        for each, run in ((plain, plain), (model, compiled)):
            loss = run(values(9, HIDDEN, seed=seed)).square().sum()
            torch.autograd.backward(loss if attached else loss + auxiliary_loss(each))
            with torch.no_grad():
                found.append((auxiliary_loss(each), gradients(each)))
        torch.testing.assert_close(found[1][0], found[0][0])
        for name, wanted in found[0][1].items():
            torch.testing.assert_close(found[1][1][name], wanted, msg=name, rtol=1e-4, atol=1e-5)
    assert loads[0].read() == loads[1].read()


WHOLE = [
    pytest.param({**LOSSES, "capacity_factor": 1.0, "bias_rate": 0.1}, id="added"),
    pytest.param({**LOSSES, "attach": True}, id="attached"),
]


@pytest.mark.slow
@pytest.mark.parametrize("options", WHOLE)
def test_a_whole_model_is_one_graph(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    plain, model = nn.Sequential(moe_layer()), nn.Sequential(moe_layer())
    for each in (plain, model):
        set_training(each, **options)
    check(plain, model, torch.compile(model, backend="aot_eager", fullgraph=True), "attach" in options)


def test_blocks_that_are_compiled_and_checkpointed_are_attached() -> None:
    torch._dynamo.reset()
    plain, model = Checkpointed(moe_layer()), Checkpointed(moe_layer())
    for each in (plain, model):
        set_training(each, **LOSSES, attach=True)
    model.layer.compile(backend="aot_eager", fullgraph=True)
    check(plain, model, model, attached=True)


@pytest.mark.slow
@pytest.mark.parametrize("attach", [False, True])
def test_a_whole_model_with_checkpoints_is_one_graph_by_an_option_of_torch(attach: bool) -> None:
    torch._dynamo.reset()
    plain, model = Checkpointed(moe_layer()), Checkpointed(moe_layer())
    for each in (plain, model):
        set_training(each, **LOSSES, attach=attach)
    with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):
        check(plain, model, torch.compile(model, backend="aot_eager", fullgraph=True), attach)


@pytest.mark.slow
def test_draws_and_sparsity_run_too() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(moe_layer())
    set_training(model, router_noise=0.3, load=0.1, gating_dropout=0.3, jitter=0.1, sparsity=0.01)
    compiled: Any = torch.compile(model, backend="aot_eager")  # sparsity looks into the layer: its graph ends there
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.autograd.backward(compiled(values(9, HIDDEN)).sum() + auxiliary_loss(compiled))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
