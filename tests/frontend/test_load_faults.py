"""Files that are damaged, or of a kind that cannot come in: one clear line each, and no code of theirs runs."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from moeify.errors import InputError, one_line
from moeify.frontend.load_model import load_model


def make() -> nn.Module:
    return nn.Linear(300, 7)


STATE = make().state_dict()


class Trap:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def _load(path: Path) -> None:
    load_model(path, factory=make, example=(torch.ones(1, 300),))


def _refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        _load(path)
    assert one_line(str(path)) in str(caught.value)
    assert "\n" not in str(caught.value)


def _folder_of_gguf(path: Path) -> None:
    path.mkdir()
    (path / "m.gguf").touch()


#: caption, suffix, what is written, what the message says
REFUSED: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("a path that is not there", ".pt", lambda p: None, "no such file or folder; .* nothing is downloaded"),
    ("an empty file", ".pt", lambda p: p.touch(), "is an empty file"),
    ("garbage", ".pt", lambda p: p.write_bytes(b"garbage" * 99), r"is no \.pt file that can be read"),
    ("garbage without a suffix", "", lambda p: p.write_bytes(b"garbage"), "is of no known kind"),
    ("an empty folder", "", lambda p: p.mkdir(), "folder without config.json"),
    ("a folder with a GGUF file", "", _folder_of_gguf, r"give the file .*m\.gguf"),
    (
        "a pickled module of before torch 1.6",
        ".pt",
        lambda p: torch.save(make(), p, _use_new_zipfile_serialization=False),
        r"cannot be read safely.*torch\.save\(model\.state_dict\(\)",
    ),
    ("a trap", ".pt", lambda p: torch.save({"x": Trap(p.parent / "sprung")}, p), r"classes posix\.mkdir, which could run code"),
    ("a bare pickle", ".pkl", lambda p: p.write_bytes(pickle.dumps({"x": 1})), "cannot be read safely"),
    ("a bare trap", ".pkl", lambda p: p.write_bytes(pickle.dumps(Trap(p.parent / "sprung"), 2)), "posix.mkdir"),
    (
        "a TorchScript archive",
        ".pt",
        lambda p: _archive(p, "m/data.pkl", "m/constants.pkl", "m/code/x.py"),
        "TorchScript archive",
    ),
    ("another zip", ".zip", lambda p: _archive(p, "readme.txt"), "zip archive that torch.save did not write"),
    ("a zip of torch.save's names", ".pt", lambda p: _archive(p, "m/data.pkl", "m/version"), "no whole file of torch.save"),
    ("a path with a zero", "\0", lambda p: None, "cannot be read"),
]


def _archive(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


@pytest.mark.parametrize(("suffix", "write", "message"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_cannot_come_in_is_one_line(suffix: str, write: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    write(path)
    _refused(path, message)
    assert not (tmp_path / "sprung").exists()


def test_a_state_dict_beside_a_config_points_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file(STATE, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="or give the folder"):
        load_model(tmp_path / "model.safetensors")


FORMS: list[tuple[str, Callable[[Path], object]]] = [
    ("zip", lambda p: torch.save(STATE, p)),
    ("pickle", lambda p: torch.save(STATE, p, _use_new_zipfile_serialization=False)),
    ("safetensors", lambda p: save_file(STATE, p)),
]


@pytest.mark.parametrize("write", [c[1] for c in FORMS], ids=[c[0] for c in FORMS])
def test_a_file_cut_off_anywhere_is_one_line(write: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    write(path)
    content = path.read_bytes()
    for end in [*range(1, 400, 13), *range(400, len(content), 997), len(content) - 1]:
        path.write_bytes(content[:end])
        _refused(path, ".")


def test_a_flipped_bit_in_a_zip_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    values = content.find(STATE["weight"].numpy().tobytes())
    content[values + 5] ^= 1
    path.write_bytes(content)
    _refused(path, r"is damaged: the checksum of its part m/data/\d is wrong")
