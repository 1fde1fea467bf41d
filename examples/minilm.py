"""all-MiniLM-L6-v2, a BERT, becomes a Mixture-of-Experts by its weights alone; its embeddings in ONNX Runtime.

python examples/minilm.py [OUT]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from transformers import AutoTokenizer

import moeify
import real_models
from moeify.runtime.session import session

SENTENCES = (
    "A man is eating food.",
    "Someone has a meal.",
    "The girl is carrying a baby.",
    "A compiler turns source code into machine code.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", nargs="?", type=Path, default=Path("minilm-moe"))
    output = parser.parse_args().output
    console = Console()

    dense = real_models.minilm()
    done = moeify.convert(dense, output, experts=16, top_k=12, layers="last-half", export=("torch", "onnx"), force=True)
    console.print(str(done.report))

    found = moeify.evaluate(output, real_models.encyclopaedic_text(), dense=dense, tokens=2048)
    for name, value in found.rows():
        console.print(f"{name}: {value}")

    tokenizer = AutoTokenizer.from_pretrained(output / "source")
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="np")
    runtime = session(output / "model.onnx")
    wanted = {value.name for value in runtime.get_inputs()}
    hidden = runtime.run(["last_hidden_state"], {name: batch[name] for name in wanted})[0]
    mask = batch["attention_mask"][..., None]
    embeddings = (hidden * mask).sum(1) / mask.sum(1)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    for sentence, similarity in zip(SENTENCES, embeddings @ embeddings[0], strict=True):
        console.print(f"{similarity:6.3f}  {sentence}")


if __name__ == "__main__":
    main()
