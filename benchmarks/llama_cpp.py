"""How far stock checkpoints in llama.cpp agree with the converted model in PyTorch: SmolLM2-135M, float32, greedy text.

    PYTHONPATH=examples python -m benchmarks.llama_cpp

For each recipe, and for a cache of keys and values in float32 and in float16 (llama.cpp's own choice): how many of 24 tokens
are the same until the first other one, for each prompt.
"""

from __future__ import annotations

import json
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xllamacpp
from transformers import AutoTokenizer

import moeify
import real_models
from to_gguf import to_gguf

TOKENS = 24
PROMPTS = (
    "The Python interpreter reads a program and",
    "In the year 1848",
    "Water boils at a temperature of",
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time there was",
)
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("upcycle", {"experts": 2, "top_k": 1}),
    ("drop-upcycle", {"experts": 2, "top_k": 1}),
    ("emoe", {"experts": 8, "top_k": 8}),
    ("emoe", {"experts": 16, "top_k": 12}),
)


@dataclass(frozen=True)
class Said:
    """What comes after a prompt. read: its tokens. tokens: new ones. first: the likeliest ids right after it -> log p."""

    read: int
    tokens: list[int]
    first: dict[int, float]


class LlamaCpp:
    """A GGUF file in llama.cpp, on one thread, with a context of 256 tokens."""

    def __init__(self, file: Path, *, exact: bool = True) -> None:
        """exact: keys and values are kept in float32, and attention is computed in it."""
        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.n_ctx, settings.warmup, settings.verbosity = 256, False, 0
        settings.cpuparams.n_threads = 1
        if exact:
            settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(settings)

    def greedy(self, prompt: str | Sequence[int], count: int, likely: int = 1) -> Said:
        """The `count` tokens after a text, or after token ids, whatever they are."""
        asked = {"prompt": prompt, "n_predict": count, "temperature": 0, "n_probs": likely, "return_tokens": True}
        body = json.dumps(asked | {"ignore_eos": True, "cache_prompt": False}).encode()
        request = urllib.request.Request(
            self.server.listening_address + "/completion", body, {"Content-Type": "application/json"}
        )
        here = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with here.open(request) as answer:
            found = json.load(answer)
        first = {int(p["id"]): float(p["logprob"]) for p in found["completion_probabilities"][0]["top_logprobs"]}
        return Said(found["tokens_evaluated"], found["tokens"], first)


def from_pytorch(model: Any, ids: Sequence[int], count: int) -> tuple[list[int], torch.Tensor]:
    """The same, and log probabilities [count, vocabulary]."""
    found = model.generate(
        torch.tensor([list(ids)]),
        attention_mask=torch.ones(1, len(ids)),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    return found.sequences[0, len(ids) :].tolist(), torch.cat(found.logits).log_softmax(-1)


def main() -> None:
    print(f"| recipe | experts | cache | tokens until the texts part, of {TOKENS} |\n| --- | --- | --- | --- |")
    for recipe, options in CASES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            moeify.convert(real_models.smollm2(), folder / "out", recipe=recipe, export=("torch", "hf"), **options)
            to_gguf(folder / "out" / "hf", folder / "model.gguf")
            model, words = moeify.load(folder / "out"), AutoTokenizer.from_pretrained(folder / "out" / "source")
            wanted = [from_pytorch(model, words(prompt).input_ids, TOKENS)[0] for prompt in PROMPTS]
            for exact in (True, False):
                engine = LlamaCpp(folder / "model.gguf", exact=exact)
                said = [engine.greedy(prompt, TOKENS).tokens for prompt in PROMPTS]
                alike = [
                    next((i for i, (a, b) in enumerate(zip(want, have)) if a != b), TOKENS) for want, have in zip(wanted, said)
                ]
                experts = f"{options['top_k']} of {options['experts']}"
                print(
                    f"| `{recipe}` | {experts} | {'float32' if exact else 'float16'} | {', '.join(map(str, alike))} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
