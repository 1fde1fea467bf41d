"""A small Llama as a GGUF file, written with the gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

HIDDEN, NEURONS, TOKENS = 32, 64, 40


def write_gguf(path: Path, architecture: str = "llama", leave_out: str = "", bad: str = "") -> Path:
    """One block of a Llama in float32, with a byte-level tokenizer."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(NEURONS)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([chr(97 + i) if i < 26 else f"<{i}>" for i in range(TOKENS - 1)] + ["ab"])
    writer.add_token_types([1] * TOKENS)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(26)
    writer.add_eos_token_id(27)
    shapes = {
        "token_embd": (TOKENS, HIDDEN), "output_norm": (HIDDEN,), "output": (TOKENS, HIDDEN),
        "blk.0.attn_norm": (HIDDEN,), "blk.0.ffn_norm": (HIDDEN,), "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (HIDDEN // 2, HIDDEN), "blk.0.attn_v": (HIDDEN // 2, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN), "blk.0.ffn_gate": (NEURONS, HIDDEN),
        "blk.0.ffn_up": (NEURONS, HIDDEN), "blk.0.ffn_down": (HIDDEN, NEURONS),
    }  # fmt: skip
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        if name != leave_out:
            values = generator.normal(size=shape).astype(np.float32)
            writer.add_tensor(f"{name}.weight", values * np.nan if name == bad else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
