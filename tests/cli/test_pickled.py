"""Pickled modules: what is made of torch.nn alone goes the whole way as it is, anything else with the user's word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import moeify as library
from cli.command_line import Outcome
from moeify.errors import InputError

Run = Callable[[str], Outcome]


@pytest.fixture
def ids(tmp_path: Path) -> None:
    """Token ids, [8, 12], in the current folder."""
    torch.save(torch.randint(20, (8, 12), generator=torch.Generator().manual_seed(3)), tmp_path / "ids.pt")


@pytest.mark.usefixtures("ids")
def test_a_module_of_torch_nn_needs_nothing_but_its_file(moeify: Run, tmp_path: Path) -> None:
    done = moeify("convert layers.pt -o out --experts 4 --top-k 4")
    assert done.code == 0, done.err
    assert "note: example inputs were assumed: int64 [2, 16], as 0 (Embedding) takes them" in done.err
    assert sorted(path.name for path in (tmp_path / "out" / "source").iterdir()) == ["example.pt", "module.pt"]
    evaluated = moeify("evaluate out --data ids.pt --dense layers.pt --json")
    assert evaluated.code == 0, evaluated.err
    (score,) = [s for s in evaluated.data["scores"] if s["name"] == "converted"]
    assert score["divergence"]["relative_error"] < 1e-6
    assert moeify("export out -o out.onnx").code == 0
    assert "2 MoE layers" in moeify("inspect out").out
    assert "2 feed-forward networks" in moeify("inspect layers.pt").out


def test_another_class_needs_the_users_word_at_every_step(moeify: Run, tmp_path: Path) -> None:
    assert moeify("convert module.pt -o out --experts 4").code == 1
    assert moeify("convert module.pt -o out --experts 4 --top-k 4 --allow-pickle").code == 0
    refused = moeify("export out -o out.onnx")
    assert refused.code == 1
    assert all(word in refused.err for word in ("cli.tiny_models.Block", "--allow-pickle", "--factory"))
    assert moeify("export out -o out.onnx --allow-pickle").code == 0
    assert moeify("export out -o again.onnx --factory cli.tiny_models:stack").code == 0
    assert moeify("evaluate out --data rows.pt --dense module.pt --allow-pickle").code == 0
    assert "2 feed-forward networks" in moeify("inspect module.pt --allow-pickle").out
    with pytest.raises(InputError, match=r"allow_pickle=True.*factory="):
        library.load(tmp_path / "out")
    x, dense = torch.randn(3, 8), torch.load(tmp_path / "module.pt", weights_only=False)
    assert torch.allclose(library.load(tmp_path / "out", allow_pickle=True)(x), dense(x), atol=1e-6)
