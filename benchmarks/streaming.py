"""A conversion of a model that is bigger than the memory it takes: a Llama shape with random bf16 weights, made shard by shard.

python -m benchmarks.streaming [--shape 7b|1b|tiny] [--layers N] [--calibrate TOKENS] [--recipe NAME] [--kill LAYERS]
    [--model FOLDER] [--write]
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.rows import arguments, machine, show

#: The last file of a Hugging Face folder that is written.
INDEX = "model.safetensors.index.json"

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
    (folder / INDEX).write_text(json.dumps(index), "utf-8")


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
    with _begun(model, output, *options) as run:
        said, _ = run.communicate()
    if run.returncode:
        raise subprocess.CalledProcessError(run.returncode, run.args)
    found: dict[str, Any] = json.loads(said)
    return found


def killed(model: Path, output: Path, layers: int, *options: str) -> None:
    """Begins the same conversion, and kills it (SIGKILL) once so many layers are finished."""
    with _begun(model, output, *options) as run:
        try:
            while len(list(output.parent.glob(f".{output.name}.moeify-journal/layer-*.safetensors"))) < layers:
                if run.poll() is not None:
                    raise RuntimeError(f"it ended before {layers} layers were seen to be finished")
                time.sleep(0.01)
        finally:
            run.kill()


def _begun(model: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(MEASURE), str(model), str(output), "--dtype", "bf16", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--layers", type=int, help="other than the shape's: 32 of 7b take 36 GB of disk")
    parser.add_argument("--calibrate", type=int, default=0, metavar="TOKENS")
    parser.add_argument("--recipe", default="emoe")
    parser.add_argument("--kill", type=int, default=0, metavar="LAYERS", help="kill it after so many layers, and resume it")
    parser.add_argument("--model", type=Path, help="keep the dense model in this folder, or take the one that is there")
    parser.add_argument("--folder", type=Path, help="where to put the models; default: a temporary folder")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    shape = replace(shape, layers=options.layers or shape.layers)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        model, ids, output = options.model or Path(scratch) / "dense", Path(scratch) / "ids.pt", Path(scratch) / "moe"
        if not (model / INDEX).exists():
            write_llama(model, shape)
        given: tuple[str, ...] = ("--recipe", options.recipe)
        if options.calibrate:
            write_ids(ids, shape, 2 * options.calibrate)
            given += ("--text", str(ids), "--tokens", str(options.calibrate))
        if options.kill:
            killed(model, output, options.kill, *given)
            given += ("--resume",)
        found = measured(model, output, *given)
        digest = hashlib.sha256((output / "moeify.json").read_bytes()).hexdigest()
    about = {"shape": asdict(shape), "parameters": shape.parameters, "recipe": options.recipe, "calibration": options.calibrate}
    row = {"benchmark": "streaming", **machine(), **about, "killed_after": options.kill, **found, "manifest": digest}
    show(row, options.write)


if __name__ == "__main__":
    main()
