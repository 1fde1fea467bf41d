from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from moeify.errors import UsageError
from moeify_passes.expert_rows import expert_masses, expert_rows
from moeify_passes.routers.classifier_fit import ClassifierFit, fit_classifier
from moeify_passes.routers.held_out import held_out
from moeify_passes.routers.mlp_classifier import MlpClassifier
from moeify_passes.routers.similarity import Similarity
from passes.routed import in_four, planted_figures, routed
from passes.tiny import correlated_inputs, random_site


def test_masses_are_those_of_the_neurons() -> None:
    site, x = random_site(gated=True, biases=True), correlated_inputs(20)
    spec = in_four(site, shared=8)
    h = site.neuron_outputs(x).abs()
    torch.testing.assert_close(
        expert_masses(expert_rows(site, spec), x), torch.stack([h[:, e].sum(1) for e in spec.experts], dim=1)
    )


def test_learns_more_than_it_starts_with() -> None:
    """Experts of unrelated neurons: directions say little, what was learnt says more."""
    contexts = [routed(random_site("a"), by, top_k=1, tokens=2000)[1] for by in (Similarity(), MlpClassifier())]
    figures = [context.measurements["a"] for context in contexts]
    assert figures[0]["random_share"] < figures[0]["router_share"] < figures[1]["router_share"] - 0.02


def test_its_choice_is_measured_against_the_oracle() -> None:
    figures = planted_figures(MlpClassifier(epochs=10))
    assert figures["random_share"] < 0.6 < 0.95 < figures["router_share"] <= 1


def test_is_the_authors_loop() -> None:
    """The same batches, targets, loss and steps written down once more, on a bias-free ReLU FFN: the same weights."""
    site = random_site()
    spec, context = routed(site, MlpClassifier(epochs=2, batch=64))
    sample = correlated_inputs(600)
    generator = context.generator("routers/mlp-classifier", site)
    learn, judge = held_out(site, held_out(site, sample, context.generator("held-out", site))[0], generator)
    up = site.up.read()
    centres = torch.stack([F.normalize(up[e], dim=1).mean(0) for e in spec.experts])
    first, second = torch.nn.Linear(12, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    first.weight.data, second.weight.data = centres.clone(), torch.eye(4)
    model = torch.nn.Sequential(first, torch.nn.Tanh(), second)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)

    def truth(u: torch.Tensor) -> torch.Tensor:
        return torch.stack([F.relu(u @ up[e].T).sum(1) for e in spec.experts], dim=1)

    u, v = F.normalize(learn, dim=1), F.normalize(judge, dim=1)
    states = []
    for _ in range(2):
        for rows in torch.split(torch.randperm(len(u), generator=generator), 64):
            scores = truth(u[rows])
            adam.zero_grad()
            F.binary_cross_entropy_with_logits(model(u[rows]), scores / scores.max()).backward()  # type: ignore[no-untyped-call]  # torch
            adam.step()
        mass = truth(v)
        captured = float((mass.gather(1, model(v).topk(1, dim=1).indices).sum() / mass.sum()).detach())
        states.append((captured, [p.detach().clone() for p in model.parameters()]))
    best = max(states, key=lambda state: state[0])[1]
    assert spec.router is not None
    torch.testing.assert_close(spec.router.tensors["weight_in"], best[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(spec.router.tensors["weight_out"], best[1], rtol=1e-3, atol=1e-4)


def test_fits_in_inference_mode_and_without_the_global_generator() -> None:
    x = F.normalize(correlated_inputs(300), dim=1)
    data = (x, x[:, :3].abs())
    state = torch.get_rng_state()
    with torch.inference_mode():
        fit = ClassifierFit(2, 50, 0.01)
        found = [fit_classifier(fit, data, data, x[:3].clone(), torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "mlp-classifier.epochs is 0: choose 1 or more"),
        ({"batch": 0}, "mlp-classifier.batch is 0: choose 1 or more"),
        ({"learning_rate": 0.0}, "mlp-classifier.learning_rate is 0.0: choose a number above 0"),
    ],
)
def test_refuses_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError) as error:
        MlpClassifier(**options)  # type: ignore[arg-type]  # wrong on purpose
    assert str(error.value) == message
