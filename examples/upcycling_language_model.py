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

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, get_linear_schedule_with_warmup

import moeify
import real_models
from checkpointed_runs import Budget, Results, Run
from comparison import Experiment, arguments, compare
from moeify.pipeline.plan import Plan
from package_files import cached


@dataclass(frozen=True)
class Pretraining:
    """The dense model that all arms begin with: tokens of a window, windows of a batch; held_out: tokens to validate with, and
    as many to test with."""

    vocabulary: int = 2048
    hidden: int = 128
    layers: int = 4
    window: int = 128
    batch: int = 12
    held_out: int = 40_000
    steps: int = 1600
    rate: float = 4e-3


@dataclass(frozen=True)
class Setting:
    """steps: of the dense and of the upcycled arm."""

    pretraining: Pretraining = Pretraining()
    steps: int = 130
    experts: int = 8
    top_k: int = 2
    load_balance: float = 0.01


QUICK = Setting(Pretraining(vocabulary=300, hidden=32, layers=2, window=32, batch=4, held_out=2000, steps=8), steps=4)


class Text:
    """The text as token ids: the front to train with, then validation, then test."""

    def __init__(self, setting: Pretraining) -> None:
        raw = real_models.encyclopaedic_text().read_text(encoding="utf-8")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=setting.vocabulary, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(raw[: len(raw) * 9 // 10].split("\n"), trainer)
        ids = torch.tensor(tokenizer.encode(raw).ids)
        n, self.window, self.size = setting.held_out, setting.window, setting.batch
        self.train, self.validation, self.test = ids[: -2 * n], ids[-2 * n : -n], ids[-n:]

    def batch(self, generator: torch.Generator) -> Tensor:
        """Windows of the training text that the generator draws, int64 [batch, window]."""
        starts = torch.randint(len(self.train) - self.window, (self.size,), generator=generator)
        return torch.stack([self.train[start : start + self.window] for start in starts.tolist()])


def new_model(setting: Pretraining) -> nn.Module:
    """A Llama with tied embeddings, three times as many neurons as hidden values, and four heads."""
    config = LlamaConfig(
        vocab_size=setting.vocabulary, hidden_size=setting.hidden, intermediate_size=3 * setting.hidden,
        num_hidden_layers=setting.layers, num_attention_heads=4, max_position_embeddings=setting.window,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = LlamaForCausalLM(config)
    return model


def pretrained(setting: Pretraining, text: Text, budget: Budget) -> nn.Module:
    """The dense model that all arms begin with; trained once."""

    def write(folder: Path) -> None:
        model: Any = new_model(setting)
        train(model, text, setting.steps, setting.rate, 0, budget)
        model.save_pretrained(folder)

    digest = hashlib.sha256(json.dumps(asdict(setting)).encode()).hexdigest()[:12]
    model: nn.Module = LlamaForCausalLM.from_pretrained(cached(f"upcycling-language-model-{digest}", write))
    return model


def train(model: nn.Module, text: Text, steps: int, rate: float, seed: int, budget: Budget) -> None:
    """An ordinary loop; what experts need of it is one line."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = get_linear_schedule_with_warmup(optimizer, max(1, steps // 20), steps)
    model.train()
    for _ in range(steps):
        budget.check()
        ids = text.batch(generator)
        loss = model(input_ids=ids, labels=ids).loss
        if moeify.moe_layers(model):
            loss = loss + moeify.auxiliary_loss(model)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def upcycled(model: nn.Module, setting: Setting, seed: int) -> tuple[nn.Module, Plan]:
    """The model with 8 copies of every FFN, and moeify's plan, which tells what it costs."""
    plans: list[Plan] = []
    experts, top_k = setting.experts, setting.top_k
    done = moeify.convert(model, recipe="upcycle", experts=experts, top_k=top_k, seed=seed, planned=plans.append)
    moeify.set_training(done.model, load_balance=setting.load_balance)
    return done.model, plans[0]


@torch.no_grad()
def perplexity(model: nn.Module, ids: Tensor, window: int) -> float:
    """Over windows that do not overlap; the first token of each is given."""
    windows = ids[: len(ids) // window * window].view(-1, window)
    batches = [windows[i : i + 64] for i in range(0, len(windows), 64)]
    total = sum(float(model(input_ids=batch, labels=batch).loss) * len(batch) for batch in batches)
    return math.exp(total / len(windows))


def work(setting: Setting, text: Text, run: Run, budget: Budget) -> Results:
    """One arm trained further, and its perplexity."""
    model = pretrained(setting.pretraining, text, budget)
    moe, plan = upcycled(pretrained(setting.pretraining, text, budget), setting, run.seed)
    used, steps = plan.parameters_before, setting.steps
    if run.arm == "upcycled":
        model, used = moe, plan.active_parameters
    elif run.arm == "dense, equal operations":
        steps = round(steps * plan.active_parameters / plan.parameters_before)
    train(model, text, steps, run.rate, run.seed, budget)
    held_out = text.validation if run.purpose == "tune" else text.test
    operations = 6 * used * steps * text.size * text.window
    figures = {"perplexity": perplexity(model, held_out, text.window), "steps": steps, "teraoperations": operations / 1e12}
    return {run.arm: figures}


def main() -> None:
    options = arguments(__doc__, "upcycling_language_model")
    setting = QUICK if options.quick else Setting()
    arms = ("upcycled", "dense", "dense, equal operations")
    experiment = Experiment(
        name="upcycling_language_model",
        arms=arms,
        rates=(1e-3,) if options.quick else (5e-4, 1.5e-3, 4.5e-3),
        seeds=tuple(range(2 if options.quick else 5)),
        measures=("perplexity",),
        pairs=tuple((arms[0], other) for other in arms[1:]),
        lower_is_better=True,
    )
    text = Text(setting.pretraining)
    compare(experiment, asdict(setting), lambda run, budget: work(setting, text, run, budget), options)


if __name__ == "__main__":
    main()
