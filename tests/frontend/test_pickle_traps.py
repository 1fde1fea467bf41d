"""Malicious pickles: refused in one line, or harmless; nothing of theirs runs, neither while they are read nor later."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from frontend.pickle_traps import CANARY, OBJECTS, PICKLES, SetStateTrap, save_pickle
from moeify.errors import InputError
from moeify.frontend.load_model import load_model


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _zip(thing: object, path: Path) -> None:
    torch.save(thing, path)


def _legacy(thing: object, path: Path) -> None:
    torch.save(thing, path, _use_new_zipfile_serialization=False)


def _bare(thing: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(thing, 4))


def _refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_model(path, example=(torch.ones(1, 4),))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path(CANARY).exists()
    return str(caught.value)


@pytest.mark.parametrize("save", [_zip, _legacy, _bare])
@pytest.mark.parametrize("caption", OBJECTS)
def test_a_trap_is_refused_and_not_sprung(caption: str, save: Callable[[object, Path], None]) -> None:
    save(OBJECTS[caption](), Path("model.pt"))
    _refused(Path("model.pt"))


@pytest.mark.parametrize("caption", PICKLES)
def test_a_trap_made_by_hand_is_refused_and_not_sprung(caption: str) -> None:
    save_pickle(PICKLES[caption], Path("model.pt"))
    _refused(Path("model.pt"))
    Path("bare.pt").write_bytes(PICKLES[caption])
    _refused(Path("bare.pt"))


def test_the_traps_would_spring() -> None:
    """What the tests above rely on."""
    torch.save(OBJECTS["a subclass of a module"](), "model.pt")
    with pytest.raises(FileExistsError):
        torch.load("model.pt", weights_only=False)(torch.ones(1, 4))
    assert Path(CANARY).is_dir()


REASONS: list[tuple[str, str]] = [
    ("a call of os.mkdir", "posix.mkdir"),
    ("a call of eval", "builtins.eval"),
    ("a subclass of a module", "classes frontend.pickle_traps.SetStateTrap, which could run code"),
    ("a hook that is a function of torch", "0 (Linear) has hooks (_forward_hooks)"),
    ("a hook on a parameter that is a class of torch", "0.weight has hooks"),
    ("a forward that is a function of torch", "0 (Linear) brings a forward of its own"),
    ("a module inside itself", "is inside itself"),
]


@pytest.mark.parametrize(("caption", "reason"), REASONS)
def test_the_reason_is_said_and_what_to_do(caption: str, reason: str) -> None:
    torch.save(OBJECTS[caption](), "model.pt")
    message = _refused(Path("model.pt"))
    assert reason in message
    assert "torch.save(model.state_dict()" in message
    assert "--allow-pickle" in message


def test_names_are_read_from_every_form_of_pickle() -> None:
    for caption in ("os.mkdir in protocol 4", "os.mkdir in protocol 0"):
        save_pickle(PICKLES[caption], Path("model.pt"))
        assert "posix.mkdir" in _refused(Path("model.pt"))


def test_what_other_code_has_declared_safe_is_not_safe_here() -> None:
    module = SetStateTrap(4, 4)
    torch.save(module, "model.pt")
    with torch.serialization.safe_globals([SetStateTrap]):
        assert "SetStateTrap" in _refused(Path("model.pt"))
        assert SetStateTrap in torch.serialization.get_safe_globals()
    assert nn.Linear not in torch.serialization.get_safe_globals()


def test_attributes_that_are_only_data_come_along() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    module[0].__dict__.update(note="a text", numbers=[1, 2.5, None], table={"mask": torch.ones(2)})
    torch.save(module, "model.pt")
    loaded = load_model("model.pt", example=(torch.ones(1, 4),)).model
    assert isinstance(loaded, nn.Sequential)
    first: dict[str, object] = vars(loaded[0])
    assert first["note"] == "a text"
    assert first["numbers"] == [1, 2.5, None]
    table = first["table"]
    assert isinstance(table, dict)
    assert isinstance(table["mask"], Tensor)
