"""EMoE against plain fine-tuning: all-MiniLM-L6-v2 learns from 512 sentences how positive readers find them.

    python examples/emoe_finetuning.py        20 minutes on one core; stopped early (--minutes 10), it goes on when run again

Both arms take the same steps on the same batches from the same weights and the same new head. For one of them moeify has split
the FFNs of the last half of the layers into experts beforehand (recipe emoe), half of which are on for a token. When that one
is trained, its experts are put together again: a dense model of the old size and speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy import stats
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import moeify
import real_models
from checkpointed_runs import Budget, Results, Run
from comparison import Experiment, arguments, compare
from real_data import Rated, rated_sentences
from training_loop import Batch, Schedule, train


@dataclass(frozen=True)
class Setting:
    """sentences: to train with, in batches of `batch`, each `epochs` times; validation, test: sentences as well; tokens: the
    most that one may have."""

    sentences: int = 512
    epochs: int = 3
    batch: int = 32
    validation: int = 500
    test: int = 800
    tokens: int = 48
    experts: int = 16
    top_k: int = 8
    layers: str = "last-half"


QUICK = Setting(sentences=64, epochs=1, validation=32, test=32)
#: Pearson's r with the readers' ratings.
MEASURES = ("r on films", "r on products")


class Data:
    """Film sentences for training, validation and test, which are apart; sentences on other products to test with, too."""

    def __init__(self, setting: Setting) -> None:
        films, products = shuffled(rated_sentences("films")), shuffled(rated_sentences("products"))
        held_out = setting.validation + setting.test
        self.validation, self.test, self.train = (
            films[: setting.validation],
            films[setting.validation : held_out],
            films[held_out:],
        )
        self.products = products[: setting.test]
        self.tokenizer = AutoTokenizer.from_pretrained(real_models.minilm())
        self.tokens = setting.tokens

    def batch(self, sentences: Sequence[Rated]) -> Batch:
        texts = [sentence.text for sentence in sentences]
        inputs = dict(self.tokenizer(texts, padding=True, truncation=True, max_length=self.tokens, return_tensors="pt"))
        return inputs | {"labels": torch.tensor([sentence.rating for sentence in sentences])}

    def training_batches(self, setting: Setting, seed: int) -> Iterator[Batch]:
        """Each seed draws its own sentences. Sentences of like length share a batch: half of the padding is saved."""
        generator = torch.Generator().manual_seed(seed)
        chosen = shuffled(self.train, generator)[: setting.sentences]
        for _ in range(setting.epochs):
            around = sorted(shuffled(chosen, generator), key=lambda sentence: len(sentence.text) // 40)
            starts = range(0, len(around) - setting.batch + 1, setting.batch)
            for start in shuffled(starts, generator):
                yield self.batch(around[start : start + setting.batch])


def shuffled(items: Sequence[Any], generator: torch.Generator | None = None) -> list[Any]:
    """In the order that the generator draws; without one in an order that never changes."""
    generator = generator or torch.Generator().manual_seed(0)
    return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]


def pretrained(seed: int) -> nn.Module:
    """MiniLM with a new head of one output, which the seed decides; its embeddings stay as they are."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = AutoModelForSequenceClassification.from_pretrained(real_models.minilm(), num_labels=1)
    model.get_submodule("bert.embeddings").requires_grad_(False)
    return model


@torch.no_grad()
def correlation(model: nn.Module, data: Data, sentences: Sequence[Rated]) -> float:
    """Pearson's r of the model's rating with the readers'."""
    in_order = sorted(sentences, key=lambda sentence: len(sentence.text))
    batches = [data.batch(in_order[i : i + 64]) for i in range(0, len(in_order), 64)]
    rated = torch.cat([model(**batch).logits[:, 0] for batch in batches])
    return float(stats.pearsonr(rated.numpy(), [sentence.rating for sentence in in_order]).statistic)


def concatenated(model: nn.Module) -> nn.Module:
    """The dense model with the neurons of all experts in their order: what the converted one computes with all experts on."""
    weights = dict(model.state_dict())
    for path in moeify.moe_layers(model):  # ....output.dense; ....intermediate.dense stands empty meanwhile
        into = path.removesuffix("output.dense") + "intermediate.dense"
        tensors = {name: weights.pop(name) for name in list(weights) if name.startswith(f"{path}.")}
        weights[f"{into}.weight"], weights[f"{into}.bias"] = tensors[f"{path}.up"], tensors[f"{path}.up_bias"]
        weights[f"{path}.weight"], weights[f"{path}.bias"] = tensors[f"{path}.down"].T, tensors[f"{path}.output_bias"]
    dense = pretrained(0)
    dense.load_state_dict(weights)
    return dense.eval()


def work(setting: Setting, data: Data, run: Run, budget: Budget) -> Results:
    """One training of one arm, and what its models are worth."""
    model = pretrained(run.seed)
    if run.arm == "emoe":
        experts, top_k = setting.experts, setting.top_k
        model = moeify.convert(model, recipe="emoe", experts=experts, top_k=top_k, layers=setting.layers, seed=run.seed).model
    schedule = Schedule(setting.epochs * (setting.sentences // setting.batch), run.rate, warmup=1 / 12)
    train(model, data.training_batches(setting, run.seed), schedule, run.seed, budget)
    models = {run.arm: model} | ({"emoe, concatenated": concatenated(model)} if run.arm == "emoe" else {})
    texts = (data.validation, data.products[:0]) if run.purpose == "tune" else (data.test, data.products)
    return {
        name: {measure: correlation(each, data, text) for measure, text in zip(MEASURES, texts) if text}
        for name, each in models.items()
    }


def experiment(quick: bool = False) -> tuple[Experiment, Setting]:
    compared = Experiment(
        name="emoe_finetuning",
        arms=("dense", "emoe"),
        rates=(1e-4,) if quick else (5e-5, 1.5e-4, 4.5e-4),
        seeds=tuple(range(2 if quick else 5)),
        measures=MEASURES,
        pairs=(("emoe", "dense"), ("emoe, concatenated", "dense")),
    )
    return compared, QUICK if quick else Setting()


def main() -> None:
    options = arguments(__doc__, "emoe_finetuning")
    compared, setting = experiment(options.quick)
    data = Data(setting)
    compare(compared, asdict(setting), lambda run, budget: work(setting, data, run, budget), options)


if __name__ == "__main__":
    main()
