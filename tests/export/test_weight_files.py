"""Weights of an output folder: the bytes of a file, and how a large model is cut into several."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import moeify
from cli.tiny_models import example, stack
from moeify.errors import InputError, OutputError
from moeify.export import folder_weights
from moeify.export.folder_weights import load_weights, write_weights
from moeify.export.safetensors_file import TYPES, write_safetensors
from moeify.export.weight_shards import shards, weight_names

SHAPES = st.lists(st.integers(0, 3), max_size=3)
TENSORS = st.dictionaries(st.text(min_size=1, max_size=4), st.tuples(st.sampled_from(list(TYPES)), SHAPES), max_size=6)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TENSORS)
def test_a_file_has_the_bytes_that_safetensors_writes(tmp_path: Path, drawn: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    tensors = {name: torch.arange(math.prod(shape)).view(shape).to(kind) for name, (kind, shape) in drawn.items()}
    save_file(tensors, tmp_path / "theirs")
    write_safetensors(tensors, tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_type_that_the_format_does_not_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^w: cannot be written: x holds numbers of type complex128; cast the model first$"):
        write_safetensors({"x": torch.zeros(1, dtype=torch.complex128)}, tmp_path / "w")


@given(st.lists(st.integers(0, 8), max_size=12), st.integers(4, 40))
def test_shards_hold_every_tensor_once_and_are_no_larger_than_asked(sizes: list[int], most: int) -> None:
    tensors = {f"t{i}": torch.empty(size) for i, size in enumerate(sizes)}
    found = shards(tensors, most)
    assert [name for part in found.values() for name in part] == list(tensors)
    assert weight_names(found) == tuple(found)
    for part in found.values():
        assert len(part) < 2 or sum(tensor.nbytes for tensor in part.values()) <= most


def test_names_of_weights() -> None:
    names = (
        "report.json",
        "moeify-00002-of-00002.safetensors",
        "moeify-00001-of-00002.safetensors",
        "source/moeify.safetensors",
    )
    assert weight_names(names) == ("moeify-00001-of-00002.safetensors", "moeify-00002-of-00002.safetensors")
    assert weight_names(("moeify.json", "moeify.safetensors")) == ("moeify.safetensors",)


def test_several_files_give_the_model_back_with_what_was_tied(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    aliases = write_weights(model, tmp_path, most=64)
    names = weight_names(path.name for path in tmp_path.iterdir())
    assert len(names) > 2
    assert aliases == {"2.weight": "0.weight"}
    again = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    load_weights(again, [tmp_path / name for name in names], aliases, cast=False)
    assert again[0].weight is again[2].weight
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.fixture
def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Path]:
    """A converted model and its folder, whose weights are in several files."""
    monkeypatch.setattr(folder_weights, "SHARD", 2000)
    model = moeify.convert(stack(), tmp_path / "out", example=example(), experts=4).model
    return model, tmp_path / "out"


def equal(a: nn.Module, b: nn.Module) -> bool:
    other: dict[str, Tensor] = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


def test_a_folder_of_several_files_loads_and_is_written_again(several: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, folder = several
    names = weight_names(path.name for path in folder.iterdir())
    assert len(names) > 1
    assert weight_names(json.loads((folder / "moeify.json").read_text("utf-8"))["digests"]) == names
    assert {(folder / name).stat().st_mode for name in names} == {(folder / "recipe.toml").stat().st_mode}
    again = moeify.load(folder, factory=stack)
    assert equal(model, again)
    moeify.resave(again, folder, tmp_path / "again")
    assert equal(model, moeify.load(tmp_path / "again", factory=stack))


def test_a_file_that_is_missing_is_named(several: tuple[nn.Module, Path]) -> None:
    name = weight_names(path.name for path in several[1].iterdir())[-1]
    (several[1] / name).unlink()
    with pytest.raises(InputError, match=f"the file {name} is missing"):
        moeify.load(several[1], factory=stack)
