"""Pickled modules and exported programs: the whole way by the command alone, and where it takes the user's word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import moeify as library
from cli.command_line import Outcome
from moeify.errors import InputError
from zoo import ZOO

Run = Callable[[str], Outcome]


@pytest.fixture
def ids(tmp_path: Path) -> None:
    """Token ids, [8, 12], in the current folder."""
    torch.save(torch.randint(20, (8, 12), generator=torch.Generator().manual_seed(3)), tmp_path / "ids.pt")


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_exported_program_needs_nothing_but_its_file(moeify: Run, tmp_path: Path) -> None:
    done = moeify("convert program.pt2 -o out --experts 4 --top-k 4 --export onnx")
    assert done.code == 0, done.err
    assert "program.pt2: an exported program is the graph of eval mode" in done.err
    assert (tmp_path / "out" / "model.onnx").is_file()
    evaluated = moeify("evaluate out --data rows.pt --dense program.pt2 --json")
    assert evaluated.code == 1
    assert "rows.pt" in evaluated.err
    torch.save(torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(3)), tmp_path / "batch.pt")
    evaluated = moeify("evaluate out --data batch.pt --dense program.pt2 --json")
    assert evaluated.code == 0, evaluated.err
    (score,) = [s for s in evaluated.data["scores"] if s["name"] == "converted"]
    assert score["divergence"]["relative_error"] < 1e-6


MODULES: list[tuple[str, Callable[[], nn.Module]]] = [
    ("in memory", lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))),
    ("of a factory", lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))),
]


@pytest.mark.parametrize("make", [m[1] for m in MODULES], ids=[m[0] for m in MODULES])
def test_what_is_of_torch_nn_alone_comes_back_without_a_factory(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model, x = make().eval(), torch.randn(3, 8)
    expected = model(x)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    library.convert(tmp_path / "state.pt", tmp_path / "one", factory=make, experts=4, top_k=4)
    library.convert(model, tmp_path / "two", experts=4, top_k=4)
    for name in ("one", "two"):
        again = library.load(tmp_path / name)
        assert isinstance(again, nn.Sequential)
        assert torch.allclose(again(x), expected, atol=1e-6)
        assert {p.dtype for p in library.load(tmp_path / name, dtype="bf16").parameters()} == {torch.bfloat16}


def test_a_pickled_model_of_transformers_comes_back_from_its_config(tmp_path: Path) -> None:
    torch.save(ZOO["llama"]().model, tmp_path / "m.pt")
    done = library.convert(tmp_path / "m.pt", tmp_path / "out", experts=4, top_k=4, allow_pickle=True)
    assert not (tmp_path / "out" / "source" / "module.pt").exists()
    assert type(library.load(tmp_path / "out")) is type(done.model)
