"""State dicts: read without running anything, and fitted to the module of a factory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from moeify.errors import InputError, MoeifyError
from moeify.frontend.load_model import load_model

EXAMPLE = (torch.ones(2, 4),)


class Tied(nn.Module):
    """An embedding that is its own head, and a mask that is infinite by intent."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.full((2,), float("-inf")))

    def forward(self, ids: Tensor) -> Any:
        return self.head(self.embedding(ids))


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


def make_tied() -> nn.Module:
    return Tied()


def make_nothing() -> None:
    return None


def make_error() -> nn.Module:
    raise ValueError("no\nluck")


def make_exit() -> nn.Module:
    raise SystemExit(3)


def make_meta() -> nn.Module:
    return nn.Linear(2, 2, device="meta")


def make_lazy() -> nn.Module:
    return nn.LazyLinear(2)


SAVERS: list[tuple[str, str, Callable[[dict[str, Tensor], Path], object]]] = [
    ("pt", "m.pt", torch.save),
    ("pt of before torch 1.6", "m.pth", lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False)),
    ("pt under another suffix", "m.bin", torch.save),
    ("checkpoint with state_dict", "m.ckpt", lambda s, p: torch.save({"state_dict": s, "epoch": 3}, p)),
    ("safetensors", "m.safetensors", save_file),
    ("safetensors called pt", "m.pt", save_file),
]


@pytest.mark.parametrize(("name", "save"), [c[1:] for c in SAVERS], ids=[c[0] for c in SAVERS])
def test_every_form_gives_the_weights(name: str, save: Callable[[dict[str, Tensor], Path], object], tmp_path: Path) -> None:
    state = make().state_dict()
    save(state, tmp_path / name)
    before = torch.get_rng_state()
    loaded = load_model(tmp_path / name, factory="test_load_state_dict:make", example=EXAMPLE)
    assert all(torch.equal(value, state[key]) for key, value in loaded.model.state_dict().items())
    assert not loaded.model.training
    assert torch.equal(before, torch.get_rng_state())
    assert loaded.source.kind == "state-dict"
    assert loaded.source.factory == "test_load_state_dict:make"
    assert loaded.source.digests == {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}


def test_the_factory_may_be_a_callable_and_the_dtype_is_taken(tmp_path: Path) -> None:
    torch.save(make().to(torch.float64).state_dict(), tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", factory=make, example=EXAMPLE, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert load_model(tmp_path / "m.pt", factory=lambda: make(), example=EXAMPLE).source.factory is None


@pytest.mark.parametrize("left_out", ["head.weight", "embedding.weight", None])
def test_tied_weights_need_one_of_their_names_and_stay_tied(left_out: str | None, tmp_path: Path) -> None:
    state = {name: value for name, value in Tied().state_dict().items() if name != left_out}
    torch.save(state, tmp_path / "m.pt")
    model: Any = load_model(tmp_path / "m.pt", factory=make_tied, example={"ids": torch.tensor([[1]])}).model
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.head.weight, list(state.values())[-1])


def test_a_module_in_memory_comes_as_it_is() -> None:
    model = make().to(torch.bfloat16).train()
    loaded = load_model(model, example=EXAMPLE)
    assert loaded.model is model
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert loaded.source.kind == "module"
    assert loaded.source.model_class == "torch.nn.modules.container.Sequential"


@pytest.mark.parametrize("suffix", ["pt", "npz", "safetensors"])
def test_examples_come_from_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    x = torch.arange(8.0).view(2, 4)
    if suffix == "pt":
        torch.save((x,), path)
    elif suffix == "npz":
        np.savez(path, input=x.numpy())
    else:
        save_file({"input": x}, path)
    batch = load_model(make(), example=path).example
    value = batch["input"] if isinstance(batch, dict) else batch[0]
    assert torch.equal(value, x)


def make_example() -> tuple[Tensor, ...]:
    return (torch.zeros(1, 4),)


def test_examples_come_from_callables_by_name() -> None:
    batch = load_model(make(), example="test_load_state_dict:make_example").example
    assert isinstance(batch, tuple)
    assert torch.equal(batch[0], torch.zeros(1, 4))


GOOD = make().state_dict()
FACTORY = "test_load_state_dict:"

#: caption, what the file holds, factory, what the message says
FAULTS: list[tuple[str, Any, Any, str]] = [
    ("no factory", GOOD, None, "does not say what model it belongs to.*--factory"),
    ("missing names", {k: v for k, v in GOOD.items() if "bias" not in k}, make, r"missing: 0\.bias, 2\.bias\)"),
    ("unexpected names", GOOD | {f"x{i}": torch.ones(1) for i in range(5)}, make, "unexpected: x0, x1, x2 and 2 more"),
    (
        "wrong shape",
        GOOD | {"0.weight": torch.ones(8, 5)},
        make,
        r"0\.weight is float32 \[8, 5\] in the file, float32 \[8, 4\]",
    ),
    ("numbers of another kind", GOOD | {"0.bias": torch.ones(8, dtype=torch.int8)}, make, "0.bias is int8"),
    (
        "two values of a tied tensor",
        Tied().state_dict() | {"head.weight": torch.ones(6, 4)},
        make_tied,
        r"head\.weight and embedding\.weight are one in the model, two in the file",
    ),
    ("NaN", GOOD | {"0.bias": torch.full((8,), float("nan"))}, make, r"0\.bias holds NaN or infinite"),
    ("infinity", GOOD | {"2.bias": torch.tensor([0, 0, float("-inf"), 1])}, make, r"2\.bias holds NaN or infinite"),
    ("a list", [1, 2], make, "an object of type list, not a state_dict"),
    ("nothing", {}, make, "an empty dict, not a state_dict"),
    ("a checkpoint of other things", {"epoch": 3, "optimizer": {}}, make, "'epoch' is an object of type int, not a tensor"),
    ("a factory that raises", GOOD, make_error, "make_error: failed: ValueError: no luck"),
    ("a factory that exits", GOOD, make_exit, "make_exit: failed: SystemExit"),
    ("a factory of nothing", GOOD, make_nothing, "returned a NoneType; it must return an nn.Module"),
    ("a factory on meta", GOOD, make_meta, "weight has no values yet"),
    ("a lazy factory", GOOD, make_lazy, "weight has no values yet"),
    ("a factory by a bad name", GOOD, "nowhere", "no importable name"),
    ("a factory in no module", GOOD, "no_such_module_here:make", "no module 'no_such_module_here'"),
    ("a factory that is not there", GOOD, FACTORY + "mak", "did you mean 'make'"),
    ("a factory that is no callable", GOOD, FACTORY + "GOOD", "is a OrderedDict; give a callable"),
]


@pytest.mark.parametrize(("content", "factory", "message"), [c[1:] for c in FAULTS], ids=[c[0] for c in FAULTS])
def test_what_does_not_fit_is_one_line(content: Any, factory: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(MoeifyError, match=message) as caught:
        load_model(tmp_path / "m.pt", factory=factory, example=EXAMPLE)
    assert "\n" not in str(caught.value)


EXAMPLES: list[tuple[str, Any, str]] = [
    ("of another type", 3, "an object of type int, not a batch"),
    ("empty", (), "an empty batch"),
    ("a missing file", "nowhere.pt", "nowhere.pt: no such file"),
    ("a callable that fails", FACTORY + "make_error", "example .*failed: ValueError"),
    ("a callable that gives none", FACTORY + "make_nothing", "an object of type NoneType, not a batch"),
]


@pytest.mark.parametrize(("example", "message"), [c[1:] for c in EXAMPLES], ids=[c[0] for c in EXAMPLES])
def test_an_example_that_is_none_is_one_line(example: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_model(make(), example=example)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["npz", "pt", "txt"])
def test_a_damaged_example_file_is_one_line(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"PK\x03\x04" + bytes(50) if suffix == "npz" else b"no tensors at all")
    with pytest.raises(InputError) as caught:
        load_model(make(), example=path)
    assert str(path) in str(caught.value)
