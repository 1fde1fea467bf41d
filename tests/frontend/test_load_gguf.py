"""GGUF files: a small Llama written with the gguf package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from moeify.errors import InputError
from moeify.frontend.load_model import load_model

_HIDDEN, _NEURONS, _TOKENS = 32, 64, 40


def _write(path: Path, architecture: str = "llama", leave_out: str = "", bad: str = "") -> Path:
    """One block of a Llama in float32, with a byte-level tokenizer."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(_HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_NEURONS)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([chr(97 + i) if i < 26 else f"<{i}>" for i in range(_TOKENS - 1)] + ["ab"])
    writer.add_token_types([1] * _TOKENS)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(26)
    writer.add_eos_token_id(27)
    shapes = {
        "token_embd": (_TOKENS, _HIDDEN), "output_norm": (_HIDDEN,), "output": (_TOKENS, _HIDDEN),
        "blk.0.attn_norm": (_HIDDEN,), "blk.0.ffn_norm": (_HIDDEN,), "blk.0.attn_q": (_HIDDEN, _HIDDEN),
        "blk.0.attn_k": (_HIDDEN // 2, _HIDDEN), "blk.0.attn_v": (_HIDDEN // 2, _HIDDEN),
        "blk.0.attn_output": (_HIDDEN, _HIDDEN), "blk.0.ffn_gate": (_NEURONS, _HIDDEN),
        "blk.0.ffn_up": (_NEURONS, _HIDDEN), "blk.0.ffn_down": (_HIDDEN, _NEURONS),
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


def test_a_gguf_file_is_a_plain_model_afterwards(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = _write(tmp_path / "tiny")
    loaded = load_model(path)
    model: Any = loaded.model
    assert capfd.readouterr() == ("", "")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.model.layers[0].mlp.up_proj.weight.shape == (_NEURONS, _HIDDEN)
    assert not hasattr(model.config, "quantization_config")
    assert loaded.source.kind == "gguf"
    assert loaded.source.name == "tiny"
    assert isinstance(loaded.example, dict)
    assert int(loaded.example["input_ids"].max()) < _TOKENS
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.decode(loaded.tokenizer("cab")["input_ids"]) == "cab"
    loaded.save_source(tmp_path / "source")
    assert "tokenizer_config.json" in {file.name for file in (tmp_path / "source").iterdir()}
    assert not [file for file in (tmp_path / "source").iterdir() if str(tmp_path) in file.read_text()]
    model.save_pretrained(tmp_path / "again")
    again: Any = load_model(tmp_path / "again").model
    assert torch.equal(again(**loaded.example).logits, model(**loaded.example).logits)


def test_an_architecture_that_transformers_does_not_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"architecture.*not supported") as caught:
        load_model(_write(tmp_path / "m.gguf", architecture="plm"))
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing: model\.layers\.0\.mlp\.up_proj\.weight"):
        load_model(_write(tmp_path / "m.gguf", leave_out="blk.0.ffn_up"))


def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.down_proj\.weight holds NaN"):
        load_model(_write(tmp_path / "m.gguf", bad="blk.0.ffn_down"))


@pytest.mark.parametrize("part", [0.0002, 0.001, 0.02, 0.06, 0.3, 0.7, 0.999])
def test_a_file_cut_off_anywhere_is_one_line(part: float, tmp_path: Path) -> None:
    path = _write(tmp_path / "m.gguf")
    content = path.read_bytes()
    path.write_bytes(content[: max(4, int(len(content) * part))])
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
