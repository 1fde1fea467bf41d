"""THOR against a dense model and a top-1 router: a small translation model, English to French, on 2,900 short verses.

    python examples/thor_translation.py         one to two hours on one core; stopped early, it goes on when run again

Every arm is trained from scratch, for a seed from the same untrained weights on the same batches: the dense model; two
copies of every FFN with a router that takes one (recipe upcycle, load balance 0.01); two copies of which chance takes one
(recipe thor), two passes a step and the loss that makes them agree; and the dense model for as many operations as THOR
took. Verses that no arm has seen are translated greedily.

THOR is measured with an expert drawn for each token, with the experts merged into one, and with the mean of all. Costs count
steps of the dense model, by moeify's plan: passes a step x the parameters that a token uses / those of the dense model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

import moeify
from checkpointed_runs import Budget, Results, Run
from comparison import Experiment, arguments, compare
from moeify.ir.moe_config import Inference
from moeify.pipeline.plan import Plan
from moeify.training.consistency import two_passes
from small_translator import Translator, Verses, new_model, quality
from training_loop import Batch, Loss, Schedule, balanced_loss, plain_loss, train

LONGER = "dense, equal operations"

#: Name of a THOR model -> what it does in inference.
THOR: dict[str, Inference] = {"thor": "random", "thor, merged": "merged", "thor, ensemble": "ensemble"}


@dataclass(frozen=True)
class Setting:
    """steps: of every arm but the one that goes on longer. warmup: their share in which the rate rises; beta: AdamW's second.
    alpha: weight of the consistency."""

    translator: Translator = field(default_factory=Translator)
    steps: int = 600
    warmup: float = 0.25
    beta: float = 0.98
    experts: int = 2
    load_balance: float = 0.01
    alpha: float = 5.0


QUICK = Setting(Translator(vocabulary=200, hidden=32, layers=1, held_out=16, batch=16), steps=3)


def consistent_loss(alpha: float) -> Loss:
    """Two passes over the batch, each with experts drawn anew."""

    def loss(model: Any, batch: Batch) -> Tensor:
        def run() -> tuple[Tensor, Tensor]:
            output = model(**batch)
            return output.loss, output.logits

        return two_passes(run, alpha, mask=batch["labels"] != -100).loss

    return loss


def converted(arm: str, model: Any, setting: Setting, seed: int) -> tuple[Any, Loss, float]:
    """The arm's model, its loss, and the cost of a step."""
    if arm in ("dense", LONGER):
        return model, plain_loss, 1.0
    plans: list[Plan] = []
    experts = setting.experts
    if arm == "thor":
        model = moeify.convert(model, recipe="thor", experts=experts, seed=seed, planned=plans.append).model
        loss, passes = consistent_loss(setting.alpha), 2
    else:
        model = moeify.convert(model, recipe="upcycle", experts=experts, top_k=1, seed=seed, planned=plans.append).model
        moeify.set_training(model, load_balance=setting.load_balance)
        loss, passes = balanced_loss, 1
    return model, loss, passes * plans[0].active_parameters / plans[0].parameters_before


def work(setting: Setting, data: Verses, run: Run, budget: Budget) -> Results:
    """One arm trained, and its translations."""
    model, loss, cost = converted(run.arm, new_model(setting.translator, run.seed), setting, run.seed)
    steps = setting.steps * (2 if run.arm == LONGER else 1)
    schedule = Schedule(steps, run.rate, setting.warmup, setting.beta)
    train(model, data.batches(steps, run.seed), schedule, run.seed, budget, loss)
    pairs = data.validation if run.purpose == "tune" else data.test
    spent = {"steps": steps, "cost": cost * steps}
    if run.arm != "thor":
        return {run.arm: quality(model, data, pairs) | spent}
    results = {}
    for name, inference in THOR.items():
        moeify.set_inference(model, inference, scope="token", seed=run.seed)
        results[name] = quality(model, data, pairs) | spent
    return results


def experiment(quick: bool = False) -> tuple[Experiment, Setting]:
    others = ("dense", "top-1 router", LONGER)
    compared = Experiment(
        name="thor_translation",
        arms=("thor", *others),
        rates=(2e-3,) if quick else (1e-3, 2e-3, 4e-3),
        seeds=tuple(range(2 if quick else 5)),
        measures=("chrF", "BLEU"),
        pairs=tuple((model, other) for model in THOR for other in others),
    )
    return compared, QUICK if quick else Setting()


def main() -> None:
    options = arguments(__doc__, "thor_translation")
    compared, setting = experiment(options.quick)
    data = Verses(setting.translator)
    compare(compared, asdict(setting), lambda run, budget: work(setting, data, run, budget), options)


if __name__ == "__main__":
    main()
