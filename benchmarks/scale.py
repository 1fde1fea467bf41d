"""The curve of time and memory: one architecture in three sizes (random weights), each converted in a process of its own.

python -m benchmarks.scale [--recipe NAME] [--hidden N] [--layers A,B,C] [--write]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import arguments, machine, show

MEASURE = Path(__file__).parent.parent / "tests" / "real" / "measure_conversion.py"

VOCABULARY = 4000


def write_llama(folder: Path, hidden: int, layers: int) -> int:
    """A Llama of that size with seeded random weights, as a Hugging Face folder; returns the number of its parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=11 * hidden // 64 * 16, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def write_ids(path: Path, tokens: int) -> None:
    """Random token ids, in windows of 256."""
    ids = torch.randint(3, VOCABULARY, (tokens // 256, 256), generator=torch.Generator().manual_seed(0))
    torch.save({"input_ids": ids}, path)


def measured(model: Path, ids: Path, output: Path, recipe: str) -> dict[str, Any]:
    """A conversion with 16 experts, top-4 and 8,192 calibration tokens: seconds, seconds of the processor, bytes."""
    arguments = [str(MEASURE), str(model), str(output), "--text", str(ids), "--recipe", recipe]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def curve(recipe: str, hidden: int, layers: tuple[int, ...], scratch: Path) -> list[dict[str, Any]]:
    """One point a size."""
    write_ids(scratch / "ids.pt", 8192)
    points = []
    for number in layers:
        parameters = write_llama(scratch / str(number), hidden, number)
        found = measured(scratch / str(number), scratch / "ids.pt", scratch / "out", recipe)
        points.append({"layers": number, "parameters": parameters, **found})
    return points


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--recipe", default="emoe")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", default="8,16,32")
    options = parser.parse_args()
    layers = tuple(int(number) for number in options.layers.split(","))
    with tempfile.TemporaryDirectory() as scratch:
        points = curve(options.recipe, options.hidden, layers, Path(scratch))
    row = {"benchmark": "scale", "recipe": options.recipe, "hidden": options.hidden, **machine(), "points": points}
    show(row, options.write)


if __name__ == "__main__":
    main()
