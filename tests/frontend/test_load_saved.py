"""Modules of torch.nn classes come out of a pickle as they went in, through records alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moeify.errors import InputError, UsageError
from moeify.frontend.load_model import load_model
from moeify.frontend.load_saved import read_saved
from moeify.frontend.skeleton import read_skeleton, skeleton
from moeify.frontend.torch_nn import module_classes


def _shared() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    return model


def _frozen() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Dropout(0.3).eval())


MODULES: Mapping[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 8, bias=False),
    "one layer twice": _shared,
    "tied weights": _tied,
    "frozen weights and a layer in eval mode": _frozen,
    "an encoder with an activation by name": lambda: nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True),
    "an encoder with an activation module": lambda: nn.TransformerEncoderLayer(
        8, 2, 16, activation=nn.SiLU(), batch_first=True
    ),
    "an encoder with a function of torch.nn": lambda: nn.TransformerDecoderLayer(8, 2, 16, activation=nn.functional.silu),
    "attention": lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=4),
    "lstm": lambda: nn.LSTM(4, 8, 2, bidirectional=True),
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d((1, None))
    ),
    "containers": lambda: nn.ModuleDict(
        {"a": nn.ModuleList([nn.PReLU()]), "b": nn.ParameterDict({"c": nn.Parameter(torch.ones(2))})}
    ),
    "upsampling": lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Softmax(-1), nn.Unflatten(1, (2, 2))),
    "half precision": lambda: nn.LayerNorm(4).to(torch.bfloat16),
}


def described(module: nn.Module) -> list[tuple[str, type, list[tuple[str, str]]]]:
    """Path, class and attributes of every module, tensors by what they say of themselves."""
    return [
        (path, type(m), sorted((k, repr(v)) for k, v in vars(m).items() if k != "_flat_weight_refs"))
        for path, m in module.named_modules(remove_duplicate=False)
    ]


@pytest.mark.parametrize("caption", MODULES)
def test_a_module_comes_as_it_was_saved(caption: str, tmp_path: Path) -> None:
    module = MODULES[caption]()
    torch.save(module, tmp_path / "m.pt")
    found = read_saved(tmp_path / "m.pt", "torch")
    assert described(found) == described(module)
    for (name, ours), (_, theirs) in zip(found.named_parameters(), module.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert (type(ours), ours.requires_grad) == (nn.Parameter, theirs.requires_grad)


def test_what_was_shared_is_shared_again(tmp_path: Path) -> None:
    torch.save(_shared(), tmp_path / "shared.pt")
    torch.save(_tied(), tmp_path / "tied.pt")
    shared, tied = (read_saved(tmp_path / f"{name}.pt", "torch") for name in ("shared", "tied"))
    assert shared[0] is shared[2]
    assert tied[0].weight is tied[1].weight


@pytest.mark.parametrize("caption", MODULES)
def test_a_skeleton_is_the_module_without_its_weights(caption: str, tmp_path: Path) -> None:
    module = MODULES[caption]()
    content = skeleton(module)
    assert content is not None
    assert content == skeleton(MODULES[caption]())
    (tmp_path / "m.pt").write_bytes(content)
    found = read_skeleton(tmp_path / "m.pt", allow_pickle=False)
    assert all(p.is_meta for p in found.state_dict().values())
    found.load_state_dict(module.state_dict(), assign=True)
    assert str(found) == str(module)
    assert not any(p.is_meta for p in (*found.parameters(), *found.buffers()))


def test_a_module_with_a_hook_has_no_skeleton() -> None:
    module = nn.Linear(2, 2)
    module.register_forward_hook(lambda *_: None)
    assert skeleton(module) is None


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_a_checkpoint_may_hold_the_module(key: str, tmp_path: Path) -> None:
    torch.save({key: nn.Sequential(nn.Linear(4, 8)), "epoch": 3, "lr": 0.1}, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt")
    assert isinstance(loaded.model, nn.Sequential)
    assert loaded.source.kind == "module-file"
    assert set(loaded.source.digests) == {"m.pt"}
    assert loaded.notes == ("example inputs were assumed: float32 [2, 4], as 0 (Linear) takes them",)


def test_the_dtype_is_taken_and_eval_mode_set(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(4, 8), nn.Dropout()), tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in loaded.model.modules())
    assert isinstance(loaded.example, tuple)
    assert loaded.example[0].dtype == torch.bfloat16


def test_with_a_factory_the_weights_of_a_module_count_alone(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 8))
    torch.save(module, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", factory=lambda: nn.Sequential(nn.Linear(4, 8)))
    assert loaded.source.kind == "state-dict"
    assert torch.equal(loaded.model.state_dict()["0.weight"], module.state_dict()["0.weight"])


def test_a_pickle_of_before_torch_1_6_needs_the_users_word(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 8))
    torch.save(module, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="--allow-pickle"):
        load_model(tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", allow_pickle=True)
    assert torch.equal(loaded.model.state_dict()["0.weight"], module.state_dict()["0.weight"])


def test_lazy_modules_and_bases_of_others_are_not_on_the_list() -> None:
    assert not [name for name in module_classes() if "Lazy" in name]
    assert all(name.startswith("torch.nn.modules.") for name in module_classes())
    assert len(module_classes()) > 140


def test_a_flag_does_not_weaken_what_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(nn.Sequential(nn.Linear(4, 8)), tmp_path / "m.pt")
    load, seen = torch.load, list[Any]()

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(options["weights_only"])
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", watched)
    read_saved(tmp_path / "m.pt", "torch", allow_pickle=True)
    assert seen == [True]


def test_a_module_in_memory_takes_no_factory() -> None:
    with pytest.raises(UsageError, match="factory"):
        load_model(nn.Linear(2, 2), factory=lambda: nn.Linear(2, 2))
