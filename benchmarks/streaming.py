"""A conversion of a model that is bigger than the memory it takes: a Llama shape with random bf16 weights, made shard by shard.

python -m benchmarks.streaming [--shape 7b|1b|tiny] [--calibrate TOKENS] [--recipe NAME] [--write]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.rows import arguments, machine, show

MEASURE = Path(__file__).parent.parent / "tests" / "real" / "measure_conversion.py"


@dataclass(frozen=True)
class Shape:
    """A Llama: sizes as in its config. layer, embedding, parameters: how many numbers."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    heads: int

    @property
    def layer(self) -> int:
        """Parameters of one layer: attention, FFN, two norms."""
        return self.hidden * (4 * self.hidden + 3 * self.intermediate + 2)

    @property
    def embedding(self) -> int:
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        return 2 * self.embedding + self.layers * self.layer + self.hidden


SHAPES = {
    "7b": Shape(4096, 11008, 32, 32000, 32),
    "1b": Shape(2048, 5632, 16, 32000, 16),
    "tiny": Shape(128, 352, 3, 512, 4),
}


def write_llama(folder: Path, shape: Shape) -> None:
    """A Hugging Face folder with seeded random bf16 weights, a shard a layer; never holds more than one."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        max_position_embeddings=2048, architectures=["LlamaForCausalLM"], dtype="bfloat16", tie_word_embeddings=False,
    )  # fmt: skip
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    for number in range(shape.layers + 1):
        tensors = {name: _drawn(size, generator) for name, size in _sizes(shape, number).items()}
        file = f"model-{number + 1:05d}-of-{shape.layers + 1:05d}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    size = 2 * shape.parameters
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def _sizes(shape: Shape, number: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a shard: a layer, and in the last one what is around them."""
    hidden, neurons = shape.hidden, shape.intermediate
    if number == shape.layers:
        table = (shape.vocabulary, hidden)
        return {"model.embed_tokens.weight": table, "model.norm.weight": (hidden,), "lm_head.weight": table}
    inside: dict[str, tuple[int, ...]] = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    inside |= {"mlp.gate_proj": (neurons, hidden), "mlp.up_proj": (neurons, hidden), "mlp.down_proj": (hidden, neurons)}
    inside |= {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    return {f"model.layers.{number}.{name}.weight": size for name, size in inside.items()}


def _drawn(size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    return torch.empty(size, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)


def write_ids(path: Path, shape: Shape, tokens: int) -> None:
    """Random token ids, in windows of 256."""
    ids = torch.randint(3, shape.vocabulary, (tokens // 256, 256), generator=torch.Generator().manual_seed(0))
    torch.save({"input_ids": ids}, path)


def measured(model: Path, output: Path, *options: str) -> dict[str, Any]:
    """A conversion to bf16 with 16 experts, top-4, in a process of its own: seconds, peak bytes."""
    command = [sys.executable, str(MEASURE), str(model), str(output), "--dtype", "bf16", *options]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--calibrate", type=int, default=0, metavar="TOKENS")
    parser.add_argument("--recipe", default="emoe")
    parser.add_argument("--folder", type=Path, help="where to put the models; default: a temporary folder")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        model, ids = Path(scratch) / "dense", Path(scratch) / "ids.pt"
        write_llama(model, shape)
        data: tuple[str, ...] = ()
        if options.calibrate:
            write_ids(ids, shape, 2 * options.calibrate)
            data = ("--text", str(ids), "--tokens", str(options.calibrate))
        found = measured(model, Path(scratch) / "moe", "--recipe", options.recipe, *data)
    about = {"shape": asdict(shape), "parameters": shape.parameters, "recipe": options.recipe, "calibration": options.calibrate}
    show({"benchmark": "streaming", **machine(), **about, **found}, options.write)


if __name__ == "__main__":
    main()
