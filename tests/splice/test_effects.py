"""How far the output moves when one FFN's output is disturbed, against the model run by hand."""

from __future__ import annotations

import pytest
import torch

from moeify.api.models import open_model
from moeify.splice.eager_host import EagerHost
from zoo import ZOO, Zoo


def host_of(zoo: Zoo) -> EagerHost:
    host = open_model(zoo.model, example=zoo.example).host
    assert isinstance(host, EagerHost)
    return host


@pytest.mark.parametrize("name", ["llama", "residual-stack"])
def test_effects_are_those_of_noise_put_in_by_a_hook(name: str) -> None:
    zoo = ZOO[name]()
    host = host_of(zoo)
    sites, _ = host.find()
    found = host.effects(sites, [zoo.example], 0.05, torch.Generator().manual_seed(0))
    assert len(found) == len(sites)
    assert all(value > 0 for value in found)
    again = host.effects(sites, [zoo.example], 0.05, torch.Generator().manual_seed(0))
    assert found == again
    generator = torch.Generator().manual_seed(0)
    by_hand = []
    with torch.no_grad():
        before = logits(zoo)
        for site in sites:

            def disturb(module: torch.nn.Module, args: object, y: torch.Tensor) -> torch.Tensor:
                norms = y.norm(dim=-1, keepdim=True)
                norms = norms.clamp(max=10**0.5 * float(norms.median()))
                disturbed: torch.Tensor = y + torch.randn(y.shape, generator=generator) * 0.05 * norms / y.shape[-1] ** 0.5
                return disturbed

            handle = zoo.model.get_submodule(site.path).register_forward_hook(disturb)
            after = logits(zoo)
            handle.remove()
            if name == "llama":
                p = before.log_softmax(-1)
                by_hand.append(float((p.exp() * (p - after.log_softmax(-1))).sum(-1).mean()))
            else:
                by_hand.append(float(((before - after).square().sum(-1) / before.square().sum(-1)).mean()))
    assert found == pytest.approx(by_hand, rel=2e-2)


def logits(zoo: Zoo) -> torch.Tensor:
    from converted import main_output

    return main_output(zoo.model(**zoo.example) if isinstance(zoo.example, dict) else zoo.model(*zoo.example)).float()


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_other_architectures_have_effects_and_are_left_as_they_were(name: str) -> None:
    zoo = ZOO[name]()
    before = {key: value.clone() for key, value in zoo.model.state_dict().items()}
    host = host_of(zoo)
    sites, _ = host.find()
    small, large = (host.effects(sites, [zoo.example], size, torch.Generator().manual_seed(1)) for size in (0.01, 0.3))
    assert len(small) == len(sites)
    assert all(0 <= a <= b for a, b in zip(small, large))
    assert sum(large) > 0 or not sites
    assert all(torch.equal(value, before[key]) for key, value in zoo.model.state_dict().items())
