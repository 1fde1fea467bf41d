"""Weights that are no weights: wrong types, values that are not finite, tensors too many and too few."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cli.command_line import Outcome
from cli.small_files import FILES, state
from cli.tiny_models import TINY

Run = Callable[[str], Outcome]
Change = Callable[[dict[str, Tensor]], Any]


def every(dtype: torch.dtype) -> Change:
    return lambda values: values.update({name: value.to(dtype) for name, value in values.items()})


def one(name: str, value: Callable[[Tensor], Tensor]) -> Change:
    return lambda values: values.update({name: value(values[name])})


def filled(number: float) -> Change:
    return one("1.up.weight", lambda value: value.index_fill(0, torch.tensor([3]), number))


#: caption, what is done to the state_dict, what the message says
CHANGES: list[tuple[str, Change, str]] = [
    ("whole numbers", every(torch.int32), "int32"),
    ("bytes", every(torch.uint8), "uint8"),
    ("yes and no", every(torch.bool), "bool"),
    ("complex numbers", every(torch.complex64), "complex64"),
    ("one matrix of whole numbers", one("0.up.weight", lambda v: v.int()), "unfit: 0.up.weight is int32 [32, 8] in the file"),
    ("one complex bias", one("0.up.bias", lambda v: v.to(torch.complex64)), "unfit: 0.up.bias is complex64 [32] in the file"),
    ("NaN", filled(float("nan")), "the tensor 1.up.weight holds NaN or infinite values"),
    ("infinity", filled(float("inf")), "the tensor 1.up.weight holds NaN or infinite values"),
    ("minus infinity", filled(float("-inf")), "the tensor 1.up.weight holds NaN or infinite values"),
    (
        "a number beyond float32",
        lambda v: v.update({"1.up.weight": v["1.up.weight"].double() * 1e300}),
        "NaN or infinite values",
    ),
    ("a tensor too few", lambda v: v.pop("0.down.bias"), "missing: 0.down.bias"),
    ("a tensor too many", lambda v: v.update(extra=torch.zeros(1)), "unexpected: extra"),
    ("other names", lambda v: v.update({f"model.{k}": v.pop(k) for k in list(v)}), "missing: 0.up.weight, 0.up.bias, 0.down"),
    (
        "a transposed matrix",
        one("0.up.weight", lambda v: v.T.contiguous()),
        "unfit: 0.up.weight is float32 [8, 32] in the file",
    ),
    ("a matrix cut short", one("0.up.weight", lambda v: v[:-1].clone()), "unfit: 0.up.weight is float32 [31, 8] in the file"),
    ("a matrix without rows", one("0.up.weight", lambda v: v[:0].clone()), "unfit: 0.up.weight is float32 [0, 8] in the file"),
    ("a scalar", one("0.up.weight", lambda v: v.sum()), "unfit: 0.up.weight is float32 [] in the file"),
]


@pytest.mark.parametrize("form", ["zip.pt", "old.pt", "w.safetensors"])
@pytest.mark.parametrize(("change", "words"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_a_state_dict_that_does_not_fit_is_one_line(change: Change, words: str, form: str, moeify: Run, tmp_path: Path) -> None:
    values = state(change)
    if form == "w.safetensors":
        save_file(values, tmp_path / form)
    else:
        torch.save(values, tmp_path / form, _use_new_zipfile_serialization=form == "zip.pt")
    done = moeify(f"convert {form} -o out {TINY} --experts 4")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done
    assert done.err.startswith(f"moeify: error: {form}: ")
    assert words in done.err
    assert [path.name for path in tmp_path.iterdir()] == [form]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2])
def test_other_floats_are_read(dtype: torch.dtype, moeify: Run, tmp_path: Path) -> None:
    torch.save(state(every(dtype)), tmp_path / "m.pt")
    assert moeify(f"convert m.pt -o out {TINY} --experts 4 --quiet") == Outcome(0, "", "")


#: caption, what is done to the tensors of a Hugging Face folder, what the message says
FOLDERS: list[tuple[str, Change, str]] = [
    ("NaN", one("lm_head.weight", lambda v: v * torch.nan), "llama: the tensor lm_head.weight holds NaN or infinite values"),
    ("a tensor too few", lambda v: v.pop("model.norm.weight"), "missing: model.norm.weight"),
    ("a matrix cut short", one("lm_head.weight", lambda v: v[:-1].clone()), "unfit: lm_head.weight is"),
    ("whole numbers", every(torch.int32), "holds I32, not floats"),
    (
        "one matrix of whole numbers",
        one("model.layers.0.mlp.up_proj.weight", lambda v: v.int()),
        "layers.0.mlp.up_proj.weight holds I32",
    ),
    ("one complex matrix", one("lm_head.weight", lambda v: v.to(torch.complex64)), "lm_head.weight holds C64, not floats"),
]


@pytest.mark.parametrize(("change", "words"), [c[1:] for c in FOLDERS], ids=[c[0] for c in FOLDERS])
def test_a_folder_whose_weights_do_not_fit_is_one_line(change: Change, words: str, moeify: Run, tmp_path: Path) -> None:
    FILES["llama"](tmp_path / "llama")
    path = tmp_path / "llama" / "model.safetensors"
    values = {name: value.clone() for name, value in load_file(path).items()}
    change(values)
    save_file(values, path, {"format": "pt"})
    done = moeify("convert llama -o out --experts 4")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done
    assert words in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


@pytest.mark.parametrize(
    ("caption", "change", "words"),
    [
        ("a layer a tensor", {"num_hidden_layers": 2_000_000_000}, "num_hidden_layers is 2000000000, but there are only"),
        ("a wide model", {"intermediate_size": 1 << 40}, "parameters, but the weights are"),
        ("a large vocabulary", {"vocab_size": 1 << 50}, "parameters, but the weights are"),
        ("a size of text", {"hidden_size": "much"}, "llama: "),
        ("a negative size", {"hidden_size": -16}, "llama: "),
        ("no size", {"intermediate_size": 0}, "llama: "),
    ],
)
@pytest.mark.timeout(60)
def test_a_config_that_is_not_of_the_weights_is_one_line(
    caption: str, change: dict[str, Any], words: str, moeify: Run, tmp_path: Path
) -> None:
    FILES["llama"](tmp_path / "llama")
    config = tmp_path / "llama" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | change), "utf-8")
    done = moeify("convert llama -o out --experts 4")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done
    assert "llama" in done.err
    assert words in done.err
