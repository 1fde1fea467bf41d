"""Upcycling against dense training that goes on: a small language model, trained on encyclopaedic text, is trained further.

    python examples/upcycling_language_model.py     20 minutes on one core; stopped early, it goes on when run again

The dense model is trained once, from scratch, and kept in the cache. From there on three arms see the same random windows of
the same text: the dense model; its upcycled form (recipe upcycle: 8 copies of every FFN, a router takes 2 of them, load balance
0.01) for as many steps; and the dense model for as many operations as the upcycled one took. Perplexity is that of articles
that no arm has seen.

Operations are counted by moeify's plan: 6 for each parameter that a token uses, forward and backward; the tied embedding counts
once, as the head. Attention's products of queries and keys, which all arms share, are left out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import moeify
from checkpointed_runs import Budget, Results, Run
from comparison import Experiment, arguments, compare
from moeify.pipeline.plan import Plan
from small_language_model import Pretraining, Text, perplexity, pretrained
from training_loop import Schedule, balanced_loss, plain_loss, train

LONGER = "dense, equal operations"


@dataclass(frozen=True)
class Setting:
    """steps: of the dense and of the upcycled arm."""

    pretraining: Pretraining = field(default_factory=Pretraining)
    steps: int = 64
    experts: int = 8
    top_k: int = 2
    load_balance: float = 0.01


QUICK = Setting(Pretraining(vocabulary=300, hidden=32, layers=2, window=32, batch=4, held_out=2000, steps=8), steps=4)


def upcycled(model: Any, setting: Setting, seed: int) -> tuple[Any, Plan]:
    """The model with 8 copies of every FFN, and moeify's plan, which tells what it costs."""
    plans: list[Plan] = []
    experts, top_k = setting.experts, setting.top_k
    done = moeify.convert(model, recipe="upcycle", experts=experts, top_k=top_k, seed=seed, planned=plans.append)
    moeify.set_training(done.model, load_balance=setting.load_balance)
    return done.model, plans[0]


def work(setting: Setting, text: Text, run: Run, budget: Budget) -> Results:
    """One arm trained further, and its perplexity."""
    model, loss, steps = pretrained(text, budget), plain_loss, setting.steps
    moe, plan = upcycled(pretrained(text, budget), setting, run.seed)
    used = plan.parameters_before
    if run.arm == "upcycled":
        model, loss, used = moe, balanced_loss, plan.active_parameters
    elif run.arm == LONGER:
        steps = round(steps * plan.active_parameters / plan.parameters_before)
    train(model, text.batches(steps, run.seed), Schedule(steps, run.rate), run.seed, budget, loss)
    held_out = text.validation if run.purpose == "tune" else text.test
    operations = 6 * used * steps * text.setting.batch * text.setting.window
    value = perplexity(model, held_out, text.setting.window)
    return {run.arm: {"perplexity": value, "steps": steps, "teraoperations": operations / 1e12}}


def experiment(quick: bool = False) -> tuple[Experiment, Setting]:
    compared = Experiment(
        name="upcycling_language_model",
        arms=("upcycled", "dense", LONGER),
        rates=(1e-3,) if quick else (1.5e-4, 5e-4, 1.5e-3),
        seeds=tuple(range(2 if quick else 5)),
        measures=("perplexity",),
        pairs=(("upcycled", "dense"), ("upcycled", LONGER)),
        lower_is_better=True,
    )
    return compared, QUICK if quick else Setting()


def main() -> None:
    options = arguments(__doc__, "upcycling_language_model")
    compared, setting = experiment(options.quick)
    text = Text(setting.pretraining)
    compare(compared, asdict(setting), lambda run, budget: work(setting, text, run, budget), options)


if __name__ == "__main__":
    main()
