"""PEFT: LoRA on a converted model, its attention and its experts, and what becomes of it when it is merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from converted import distance
from moeify.ir.moe_config import RouterConfig
from moeify.layers.budget import moe_layers
from moeify.training.expert_load import ExpertLoad
from moeify.training.parameter_groups import parameter_groups
from moeify.training.settings import auxiliary_loss, set_training
from training.trained_models import batches, llama

EXPERTS = ["mlp.up", "mlp.gate", "mlp.down"]
TARGETS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "experts": {"target_modules": [], "target_parameters": EXPERTS},
    "attention and experts": {"target_modules": ["q_proj"], "target_parameters": EXPERTS},
    "router": {"target_modules": [], "target_parameters": ["mlp.router.weight"]},
    "attention, and the router whole": {"target_modules": ["q_proj"], "modules_to_save": ["router"]},
}
PARTS = {
    "attention": {"rest"}, "experts": {"experts"}, "attention and experts": {"experts", "rest"},
    "router": {"router"}, "attention, and the router whole": {"router", "rest"},
}  # fmt: skip


def adapted(model: nn.Module, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():  # PEFT draws an adapter's first matrix from the global generator
        torch.manual_seed(0)
        return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, **options))


def logits(model: Any) -> Tensor:
    model.eval()
    with torch.no_grad():
        y: Tensor = model(**batches(1)[0]).logits
    model.train()
    return y


def tune(model: Any) -> list[float]:
    """Losses of some steps; every trainable parameter gets a gradient."""
    (batch,) = batches(1)
    optimizer, losses = torch.optim.AdamW(parameter_groups(model), lr=0.02), []
    for _ in range(10):  # the first ones, of a rate as high as this, may go up
        loss = model(**batch).loss + auxiliary_loss(model)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("caption", TARGETS)
def test_lora_is_tuned_with_the_losses_and_merged(caption: str) -> None:
    model = llama()
    before = logits(model)
    tuned = adapted(model, **TARGETS[caption])
    set_training(tuned, load_balance=0.05, z_loss=0.01)
    load = ExpertLoad(tuned)
    assert torch.equal(logits(tuned), before)
    assert {group["part"] for group in parameter_groups(tuned)} == PARTS[caption]
    losses = tune(tuned)
    assert min(losses) < losses[0]
    assert len(load.read()) == 2
    after = logits(tuned)
    assert distance(after, before) > 1e-3
    merged = tuned.merge_and_unload()
    assert list(moe_layers(merged)) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert distance(logits(merged), after) < 1e-5


def test_beside_adapted_experts_the_router_is_set_free_by_hand() -> None:
    tuned = adapted(llama(), **TARGETS["experts"])
    for layer in moe_layers(tuned).values():
        assert layer.router is not None
        layer.router.requires_grad_(True)
    set_training(tuned, load_balance=0.05)
    assert {group["part"] for group in parameter_groups(tuned)} == {"experts", "router"}
    tune(tuned)


def test_average_keys_follow_what_adapters_add_to_them() -> None:
    model = llama(router=RouterConfig("average-key"), gate_rule="one", normalize=False, detach_sum=False)
    model.eval().train()  # the keys are random; now the router knows them
    tuned = adapted(model, target_modules=[], target_parameters=["mlp.gate"])
    set_training(tuned, load_balance=0.05)
    tune(tuned)
    (batch,) = batches(1)
    with torch.no_grad():
        wanted = tuned(**batch).logits
    assert torch.equal(logits(tuned), wanted)
    merged = tuned.merge_and_unload().train().eval()
    assert distance(logits(merged), wanted) < 1e-5
