"""What an MoE layer holds while it is trained by a TrainingRule, and what it does with its routing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from moeify.errors import UsageError
from moeify.layers import router_losses
from moeify.layers.attached_loss import attach
from moeify.layers.experts import LayerWeights
from moeify.layers.hidden_sparsity import HiddenSparsity
from moeify.layers.routing import ChoiceRule, Routing, gates_of, route, values_of
from moeify.layers.sparse_mixer import sparse_mixer
from moeify.layers.steering import jittered, noisy, within_capacity, without_gating
from moeify.layers.training_door import TrainingDoor
from moeify.layers.training_notes import Count, Notes, Tally
from moeify.layers.training_rule import TrainingRule


@dataclass(frozen=True, eq=False)
class Steering:
    """What a layer runs with: scores [..., experts], rule and selection bias; the losses found on the way, count of choices."""

    scores: Tensor
    rule: ChoiceRule
    bias: Tensor | None
    losses: dict[str, Tensor] = field(default_factory=dict)
    count: Count | None = None


@dataclass(eq=False)
class TrainingState:
    """rule: what is asked for. tally: of choices, None: they are not counted. door: that of the model that the layer stands in.
    decodes: does the layer see the second stream of an encoder-decoder? last: the notes of the model's last forward.
    """

    rule: TrainingRule
    tally: Tally | None = None
    door: TrainingDoor = field(default_factory=TrainingDoor)
    decodes: bool = False
    last: Notes | None = None
    _notes: Notes | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"last": None, "_notes": None}  # they may hold a graph, which cannot be copied

    def begin(self) -> None:
        """A forward of the model begins."""
        self.last = self._notes = None

    def end(self) -> None:
        """It ends: what is noted from here on, in backward, is nobody's."""
        self.last, self._notes = self._notes, None
        if self.tally is not None and self.last is not None and self.last.count is not None:
            self.tally.add(self.last.count)

    def router_input(self, x: Tensor) -> Tensor:
        return jittered(x, self.rule.input_jitter)

    def watching(self, weights: LayerWeights, x: Tensor) -> LayerWeights:
        """The weights, watched as they run if the rule has a loss on hidden activations."""
        if not self.rule.sparsity:
            return weights
        return replace(weights, watch=HiddenSparsity(x, self.rule.sparsity_floor))

    def steer(self, x: Tensor, scores: Tensor, rule: ChoiceRule, bias: Tensor | None) -> Steering:
        """The way of scores [..., experts] of x [..., hidden] through noise, choice, dropout and capacity.

        Where that is not the way of inference, choice and gates are made here and given to the layer: the gates as scores,
        the choice as a bias of plus or minus infinity.
        """
        if not (self.rule.looks or self.tally):
            return Steering(scores, rule, bias)
        flat = scores.reshape(-1, scores.shape[-1])
        weight = self.door.weight(x, self.decodes)
        loud = noisy(flat, self.rule.router_noise)
        routing = self._route(loud, rule, bias)
        wanted = without_gating(routing.chosen, self.rule.gating_dropout)
        chosen = self._within_capacity(wanted, values_of(loud.detach(), rule), weight)
        losses, count = self._losses(flat, routing, rule, weight), None
        if self.tally:
            count = Count.of(routing.chosen, wanted & ~chosen, router_losses.probabilities(flat, rule.gate_rule), weight)
        if not self.rule.steers:
            return Steering(scores, rule, bias, losses, count)
        given = torch.full_like(routing.gates, -torch.inf).masked_fill_(chosen, torch.inf)
        gates = self._gates(routing, chosen, rule)
        return Steering(gates.view_as(scores), ChoiceRule(None, 0.0, "given", False), given, losses, count)

    def noted(self, x: Tensor, y: Tensor, steering: Steering, weights: LayerWeights) -> Tensor:
        """y as it is, with all losses noted and, if so asked, attached."""
        losses = dict(steering.losses)
        if weights.watch is not None:
            losses["sparsity"] = self.rule.sparsity * weights.watch.loss(self.door.weight(x, self.decodes))
        tracked = torch.is_grad_enabled()
        if losses and self.rule.attach:
            y = attach(y, torch.stack(list(losses.values())).sum(), float(self.rule.attach))
            losses, tracked = {name: loss.detach() for name, loss in losses.items()}, True
        if self.rule.attach or not losses or self.door.open:
            # Only what holds a graph must not outlive the call; the rest is noted always, for a compiled block that a
            # checkpoint runs again has to be the same as it was before.
            self._notes = Notes(losses, tracked, steering.count).added(self._notes)
        return y

    def _within_capacity(self, chosen: Tensor, values: Tensor, weight: Tensor | None) -> Tensor:
        if self.rule.capacity_factor is None:
            return chosen
        return within_capacity(chosen, values, self.rule.capacity_factor, self.rule.drop, weight)

    def _route(self, scores: Tensor, rule: ChoiceRule, bias: Tensor | None) -> Routing:
        if self.rule.router_gradient == "sparse-mixer":
            if rule.top_k != 1:
                raise UsageError(f"sparse-mixer draws one expert, and top_k is {rule.top_k} now: set it to 1, or training anew")
            return Routing(scores, *sparse_mixer(scores, self.rule.jitter, rule.normalize))
        return route(scores, rule, bias)

    def _losses(self, scores: Tensor, routing: Routing, rule: ChoiceRule, weight: Tensor | None) -> dict[str, Tensor]:
        """By name, times their weights; scores [tokens, experts] are those before noise."""
        weights, found = self.rule.losses, {}
        if "load_balance" in weights:
            probability = router_losses.probabilities(scores, rule.gate_rule)
            found["load_balance"] = router_losses.load_balance(probability, routing.chosen, weight)
        if "z_loss" in weights:
            found["z_loss"] = router_losses.z_loss(scores, weight)
        if "importance" in weights:
            found["importance"] = router_losses.importance(routing.gates, weight)
        if "load" in weights:
            found["load"] = router_losses.load(scores, routing.scores, rule.top_k, self.rule.router_noise, weight)
        return {name: weights[name] * loss for name, loss in found.items()}

    def _gates(self, routing: Routing, chosen: Tensor, rule: ChoiceRule) -> Tensor:
        if self.rule.router_gradient == "sparse-mixer":
            return routing.gates.masked_fill(~chosen, 0.0)
        return gates_of(values_of(routing.scores, rule), chosen, rule)
