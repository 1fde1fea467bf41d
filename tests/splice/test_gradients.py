"""Gradients at the outputs of FFNs, through the traced graph, against autograd through the model itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converted import call, converted, main_output, opened
from moeify.errors import ConversionError, UsageError
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import Loss, OutputGradient
from moeify.layers.channels import features_last
from moeify.pipeline.context import PassContext
from moeify_passes.analyse.find_feed_forward import FindFeedForward
from zoo import Zoo


def by_hooks(zoo: Zoo, sites: tuple[FeedForward, ...], loss: str) -> dict[str, Tensor]:
    """h * dL/dh summed over tokens, [neurons], of every site: h is what its down matrix is given."""
    kept: dict[str, list[Tensor]] = {site.path: [] for site in sites}

    def listen(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h = args[0].requires_grad_() if args[0].is_leaf else args[0]
            h.retain_grad()
            kept[path].append(h)
            return (h, *args[1:])

        return hook

    owners = {site.path: zoo.model.get_submodule(site.down.parameter.rpartition(".")[0]) for site in sites}
    hooks = [owner.register_forward_pre_hook(listen(path)) for path, owner in owners.items()]
    with torch.enable_grad():
        output = main_output(call(zoo.model, zoo.example))
        if loss == "next-token":
            assert isinstance(zoo.example, dict)
            value = F.cross_entropy(output[:, :-1].flatten(0, 1), zoo.example["input_ids"][:, 1:].flatten(), reduction="sum")
        else:
            value = (output - output.mean(-1, keepdim=True)).square().sum() / 2
        value.backward()  # type: ignore[no-untyped-call]  # torch
    for hook in hooks:
        hook.remove()
    found = {}
    for site in sites:
        both = [(h.detach(), h.grad) for h in kept[site.path]]
        effects = [h * (torch.zeros_like(h) if grad is None else grad) for h, grad in both]
        effects = [features_last(e) if site.rewrite.channels else e for e in effects]
        found[site.path] = torch.stack([e.reshape(-1, site.neurons).abs().sum(0) for e in effects]).sum(0)
    return found


def joined(rows: list[dict[str, OutputGradient]]) -> dict[str, OutputGradient]:
    """All rows of the batch together."""
    return {
        path: OutputGradient(torch.cat([row[path].inputs for row in rows]), torch.cat([row[path].gradient for row in rows]))
        for path in rows[0]
    }


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("llama", "next-token"),
        ("gpt2", "next-token"),
        ("albert", "energy"),
        ("vit", "energy"),
        ("t5", "energy"),
        ("conv-2d", "energy"),
    ],
)
def test_importance_is_what_autograd_finds_at_the_neurons(name: str, loss: str) -> None:
    zoo, graph = opened(name)
    FindFeedForward().run(graph, PassContext())
    wanted = by_hooks(zoo, graph.sites, loss)
    found = joined(list(graph.host.gradients([zoo.example], "auto")))
    assert found.keys() == wanted.keys()
    for site in graph.sites:
        x, gradient = found[site.path].inputs, found[site.path].gradient
        effect = (site.neuron_outputs(x) * (gradient @ site.down.read().T)).abs().sum(0)
        torch.testing.assert_close(effect, wanted[site.path], rtol=2e-3, atol=2e-3 * float(wanted[site.path].max()))
        assert float(effect.max()) > 0


@pytest.mark.slow
def test_padding_is_left_out_and_the_parameters_get_no_gradient() -> None:
    zoo, graph = opened("llama")
    FindFeedForward().run(graph, PassContext())
    zoo.model.zero_grad(set_to_none=True)
    assert isinstance(zoo.example, dict)
    ids = zoo.example["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    batch = {**zoo.example, "attention_mask": mask}
    if set(batch) != set(zoo.example):
        pytest.fail("the example has an attention mask")
    found = joined(list(graph.host.gradients([batch], "next-token")))
    assert all(len(g.inputs) == len(g.gradient) == ids.numel() - 2 for g in found.values())
    assert all(p.grad is None for p in zoo.model.parameters())


def test_rows_go_through_one_by_one() -> None:
    """What is alive is one row's, logits included."""
    zoo, graph = opened("llama")
    FindFeedForward().run(graph, PassContext())
    assert isinstance(zoo.example, dict)
    rows, tokens = zoo.example["input_ids"].shape
    found = list(graph.host.gradients([zoo.example], "auto"))
    assert len(found) == rows > 1
    assert all(len(gradient.inputs) == tokens for row in found for gradient in row.values())


def test_works_inside_no_grad_and_for_frozen_parameters() -> None:
    zoo, graph = opened("llama")
    FindFeedForward().run(graph, PassContext())
    wanted = joined(list(graph.host.gradients([zoo.example], "auto")))
    zoo.model.requires_grad_(False)
    with torch.no_grad():
        found = joined(list(graph.host.gradients([zoo.example], "auto")))
    for path, gradient in found.items():
        assert torch.equal(gradient.gradient, wanted[path].gradient)


def test_a_loss_that_does_not_fit_and_a_converted_model_are_refused() -> None:
    loss: Loss = "next-token"
    zoo, graph = opened("vit")
    FindFeedForward().run(graph, PassContext())
    with pytest.raises(UsageError, match="is no causal language model: choose the loss energy, or auto"):
        next(iter(graph.host.gradients([zoo.example], loss)))
    zoo, graph = converted("llama")
    with pytest.raises(ConversionError, match="ask for them before a layer is converted"):
        graph.host.gradients([zoo.example], "auto")
