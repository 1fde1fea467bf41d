"""GGUF files: a small Llama written with the gguf package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from frontend.tiny_gguf import HIDDEN, NEURONS, TOKENS, write_gguf
from moeify.errors import InputError
from moeify.frontend.load_model import load_model


def test_a_gguf_file_is_a_plain_model_afterwards(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_gguf(tmp_path / "tiny")
    loaded = load_model(path)
    model: Any = loaded.model
    assert capfd.readouterr() == ("", "")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.model.layers[0].mlp.up_proj.weight.shape == (NEURONS, HIDDEN)
    assert not hasattr(model.config, "quantization_config")
    assert loaded.source.kind == "gguf"
    assert loaded.source.name == "tiny"
    assert isinstance(loaded.example, dict)
    assert int(loaded.example["input_ids"].max()) < TOKENS
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
        load_model(write_gguf(tmp_path / "m.gguf", architecture="plm"))
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing: model\.layers\.0\.mlp\.up_proj\.weight"):
        load_model(write_gguf(tmp_path / "m.gguf", leave_out="blk.0.ffn_up"))


def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.down_proj\.weight holds NaN"):
        load_model(write_gguf(tmp_path / "m.gguf", bad="blk.0.ffn_down"))


@pytest.mark.parametrize("part", [0.0002, 0.001, 0.02, 0.06, 0.3, 0.7, 0.999])
def test_a_file_cut_off_anywhere_is_one_line(part: float, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    content = path.read_bytes()
    path.write_bytes(content[: max(4, int(len(content) * part))])
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
