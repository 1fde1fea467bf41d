"""Hugging Face folders in several shards, with weights that are tied: converted, saved, loaded, and tied again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import moeify
from converted import call, distance, main_output
from zoo import ZOO


def tied(model: nn.Module) -> set[frozenset[str]]:
    """The names of each parameter that has several."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


@pytest.mark.parametrize("name", ["gpt2", "t5", "bart"])
def test_shards_and_tied_embeddings_go_the_whole_way(name: str, tmp_path: Path) -> None:
    zoo = ZOO[name]()
    dense: Any = zoo.model.eval()
    dense.save_pretrained(tmp_path / "dense", max_shard_size="6KB")
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 3
    done = moeify.convert(tmp_path / "dense", tmp_path / "out", recipe="random", experts=3, top_k=3)
    again = moeify.load(tmp_path / "out")
    with torch.no_grad():
        expected, ours, theirs = (main_output(call(model, zoo.example)) for model in (dense, done.model, again))
    assert distance(ours, expected) < 1e-6
    assert distance(theirs, expected) < 1e-6
    assert tied(dense)
    assert tied(dense) == tied(done.model) == tied(again)
    stored = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert stored < 1.5 * sum(path.stat().st_size for path in (tmp_path / "dense").glob("*.safetensors"))
