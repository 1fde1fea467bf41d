"""What people train with: a plain loop, autocast, checkpoints, and a run that goes on where it ended."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moeify.training.parameter_groups import parameter_groups
from moeify.training.selection_bias import update_selection_bias
from moeify.training.settings import auxiliary_loss, set_training, token_mask
from training.trained_models import HIDDEN, Stack, batches, gradients, llama, values

LOSSES: dict[str, Any] = {"load_balance": 0.05, "z_loss": 0.01}


def step(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> float:
    loss: Tensor = model(**batch).loss + auxiliary_loss(model)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.item()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(model, router={"lr": 0.003}), lr=0.01)


def test_a_plain_loop_learns() -> None:
    model = llama()
    set_training(model, **LOSSES)
    optimizer, data = optimizer_of(model), batches(2, padded=True)
    losses = [step(model, optimizer, data[i % 2]) for i in range(12)]
    assert losses[-1] < losses[0] - 0.3


def test_accumulated_batches_add_up() -> None:
    data = batches(2)
    model = llama()
    set_training(model, **LOSSES)
    wanted = []
    for batch in data:
        torch.autograd.backward((model(**batch).loss + auxiliary_loss(model)) / 2)
        wanted.append(gradients(model))
    set_training(model, **LOSSES, attach=1 / 2)
    for batch in data:
        torch.autograd.backward(model(**batch).loss / 2)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, sum(w[name] for w in wanted), msg=name)


def test_bfloat16_autocast() -> None:
    model, (batch,) = llama(), batches(1, padded=True)
    set_training(model, **LOSSES, importance=0.1, sparsity=0.001, capacity_factor=2.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss + auxiliary_loss(model)
    torch.autograd.backward(loss)
    assert auxiliary_loss(model).dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    found = auxiliary_loss(model).item()
    model(**batch)
    assert found == pytest.approx(auxiliary_loss(model).item(), rel=0.05)


def test_a_model_in_bfloat16() -> None:
    model, (batch,) = llama().bfloat16(), batches(1)
    set_training(model, **LOSSES, router_noise=0.1, load=0.1, attach=True)
    torch.autograd.backward(model(**batch).loss)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("options", [{"attach": False}, {"attach": True}], ids=["added", "attached"])
def test_gradient_checkpointing_of_transformers(options: dict[str, Any]) -> None:
    found = []
    for reentrant in (None, False, True):
        model: Any = llama()
        set_training(model, **LOSSES, bias_rate=0.01, **options)
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        if reentrant and not options["attach"]:
            continue
        for batch in batches(2, padded=True):
            loss = model(**batch).loss
            torch.autograd.backward(loss if options["attach"] else loss + auxiliary_loss(model))
        with torch.no_grad():
            value = auxiliary_loss(model)
        update_selection_bias(model)
        found.append((value, gradients(model), model.model.layers[0].mlp.selection_bias))
    for value, gradient, bias in found[1:]:
        torch.testing.assert_close(value, found[0][0])
        assert torch.equal(bias, found[0][2])
        for name, wanted in found[0][1].items():
            torch.testing.assert_close(gradient[name], wanted, msg=name)


@pytest.mark.parametrize("options", [LOSSES, {**LOSSES, "bias_rate": 0.01, "jitter": 0.1, "router_noise": 0.1}])
def test_a_run_goes_on_as_if_it_had_never_ended(options: dict[str, Any]) -> None:
    data = batches(4)

    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = llama()
        set_training(model, **options)
        return model, optimizer_of(model)

    def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
        found = []
        for i in steps:
            found.append(step(model, optimizer, data[i]))
            if "bias_rate" in options:
                update_selection_bias(model)
        return found

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, optimizer = begin()
        whole = run(model, optimizer, range(2))
        file = io.BytesIO()
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "draws": torch.random.get_rng_state()}
        torch.save(saved, file)
        whole += run(model, optimizer, range(2, 4))
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        again, optimizer = begin()
        again.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.random.set_rng_state(saved["draws"])
        assert run(again, optimizer, range(2, 4)) == whole[2:]
    for p, q in zip(model.parameters(), again.parameters()):
        assert torch.equal(p, q)


def test_a_mask_of_the_users_own() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Stack()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x.flatten(0, 1))
            return y

    model, x, mask = Flat(), values(2, 5, HIDDEN), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    set_training(model, z_loss=1.0)
    token_mask(model, mask)
    model(x)
    found = auxiliary_loss(model)
    token_mask(model)
    model(x[mask != 0].unsqueeze(0))
    torch.testing.assert_close(found, auxiliary_loss(model))
    token_mask(model, mask[:, :4])
    with pytest.raises(Exception, match=r"no token mask fits an MoE layer on x \[10, 6\]: the masks given are \[2, 4\]"):
        model(x)
