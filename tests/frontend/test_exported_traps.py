"""Malicious archives of torch.export: refused in one line before torch.export.load sees them; nothing of theirs runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from frontend.exported_traps import HARMLESS, TRAPS, Members, small, write_archive
from frontend.pickle_traps import CANARY
from moeify.errors import InputError
from moeify.frontend.load_model import load_model
from moeify.frontend.trace_check import run_eager


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("trap_module.py").write_text(f"import os\nos.mkdir({CANARY!r})\n")
    monkeypatch.syspath_prepend(tmp_path)


def _never(*args: Any, **options: Any) -> Any:
    raise AssertionError("torch.export.load was called")


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in TRAPS], ids=[c[0] for c in TRAPS])
def test_a_trap_is_refused_before_torch_loads_it(
    change: Callable[[Members], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(Path("model.pt2"), change)
    monkeypatch.setattr(torch.export, "load", _never)
    with pytest.raises(InputError, match=message) as caught:
        load_model("model.pt2")
    assert str(caught.value).startswith("model.pt2: ")
    assert "\n" not in str(caught.value)
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("caption", HARMLESS)
def test_what_is_only_text_is_not_run(caption: str) -> None:
    write_archive(Path("model.pt2"), HARMLESS[caption])
    loaded = load_model("model.pt2")
    model, example = small()
    (found,) = run_eager(loaded.model, example)
    assert torch.allclose(found, model(*example), atol=1e-6)
    assert not Path(CANARY).exists()


SPRUNG: list[str] = [
    "a weight that is a pickle",
    "an object",
    "sample inputs that call",
    "weights as older archives had them",
    "an archive of before torch 2.8",
    "a size that is a call",
    "a size that is a call, of a value called metadata",
    "a structure that imports a module",
    "a structure with an enumeration",
    "an input whose name is code",
]


@pytest.mark.parametrize("caption", SPRUNG)
def test_the_traps_would_spring(caption: str) -> None:
    """What the tests above rely on: torch itself runs them."""
    write_archive(Path("model.pt2"), {c[0]: c[1] for c in TRAPS}[caption])
    sys.modules.pop("trap_module", None)
    with suppress(Exception):  # whatever comes after the trap
        torch.export.load("model.pt2").module()(*small()[1])
    assert Path(CANARY).exists()
