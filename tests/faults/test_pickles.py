"""Pickles that would run code: wherever they stand, they are refused in one line, and none of it runs."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli.command_line import Outcome
from cli.small_files import FILES, state
from cli.tiny_models import TINY, example, stack
from moeify import api

Run = Callable[[str], Outcome]

#: Code that leaves a trace in the current folder.
TOUCH = "open('canary', 'w').close()"


class Trap:
    """Unpickling it calls the function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class StateTrap:
    """Unpickling it builds a harmless object, and runs code for its state."""

    def __reduce__(self) -> Any:
        return (dict, (), None, iter(()), iter([("key", Trap(eval, TOUCH))]))


SHAPES: dict[str, Callable[[], Any]] = {
    "os.system": lambda: Trap(os.system, "touch canary"),
    "eval": lambda: Trap(eval, TOUCH),
    "exec": lambda: Trap(exec, TOUCH),
    "a file that is opened": lambda: Trap(open, "canary", "w"),
    "a folder that is made": lambda: Trap(os.mkdir, "canary"),
    "nested in a state_dict": lambda: {**state(), "extra": Trap(eval, TOUCH)},
    "under the weights of a checkpoint": lambda: {"state_dict": state(), "optimizer": [{"lr": Trap(eval, TOUCH)}]},
    "a key": lambda: {(1, Trap(eval, TOUCH)): 1},
    "the items of a dict": StateTrap,
    "inside a tensor's rebuilding": lambda: Trap(torch._utils._rebuild_parameter, Trap(eval, TOUCH), True, {}),
}

#: By the letters of the format: GLOBAL and REDUCE; INST; STACK_GLOBAL after a frame.
RAW: dict[str, bytes] = {
    "protocol 0 by hand": b"cbuiltins\neval\n(S\"" + TOUCH.encode() + b"\"\ntR.",
    "INST": b"(S\"" + TOUCH.encode() + b"\"\nibuiltins\neval\n.",
    "OBJ": b"(cbuiltins\neval\nS\"" + TOUCH.encode() + b"\"\no.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c" + bytes([len(TOUCH)]) + TOUCH.encode() + b"\x85R.",
    "after a promise of another protocol": b"\x80\x02\x80\x05cbuiltins\neval\n(S\"" + TOUCH.encode() + b"\"\ntR.",
}  # fmt: skip


def archive(path: Path, content: bytes) -> None:
    """As torch.save lays its zips out."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data in (("m/data.pkl", content), ("m/byteorder", b"little"), ("m/version", b"3\n")):
            file.writestr(name, data)


def objects(path: Path, value: Any) -> np.ndarray[Any, Any]:
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


def pickled(protocol: int) -> Callable[[Path, Any], Any]:
    return lambda path, value: path.write_bytes(pickle.dumps(value, protocol))


CARRIERS: dict[str, Callable[[Path, Any], Any]] = {
    "torch.save.pt": lambda path, value: torch.save(value, path),
    "before-1.6.pt": lambda path, value: torch.save(value, path, _use_new_zipfile_serialization=False),
    "before-1.6-protocol-4.pt": lambda path, value: torch.save(
        value, path, _use_new_zipfile_serialization=False, pickle_protocol=4
    ),
    "arrays.npz": lambda path, value: np.savez(path, x=objects(path, value)),
    "array.npy": lambda path, value: np.save(path, objects(path, value)),
    **{f"protocol-{p}.{suffix}": pickled(p) for p, suffix in enumerate(["pt", "pth", "bin", "pkl", "pt", "pt"])},
}

#: The commands that read such a file.
USES = (f"convert {{}} -o out {TINY} --experts 4", f"evaluate moe {TINY} --data {{}}", "inspect {}",
        "convert model.pt -o out --factory cli.tiny_models:stack --example {} --experts 4")  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path: Path) -> Iterator[None]:
    """No code of a file has run, here or in the folder of the test."""
    yield
    assert not (tmp_path / "canary").exists()
    assert not Path("canary").exists()


def test_the_traps_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused below would leave the trace, if it were loaded."""
    monkeypatch.chdir(tmp_path)
    contents = [pickle.dumps(make(), 4) for make in SHAPES.values()]
    for content in (*contents, *RAW.values()):
        try:
            pickle.loads(content)
        except Exception:
            assert Path("canary").exists(), "it ran, and failed afterwards"
        assert Path("canary").exists(), content
        Path("canary").unlink() if Path("canary").is_file() else Path("canary").rmdir()


#: Every shape in each of the three forms, and one shape in everything that carries pickles.
PAIRS = sorted({(shape, carrier) for shape in SHAPES for carrier in list(CARRIERS)[:3]} | {("eval", c) for c in CARRIERS})


@pytest.mark.sampled
@pytest.mark.parametrize(("shape", "carrier"), PAIRS)
def test_an_object_that_runs_code(shape: str, carrier: str, moeify: Run, tmp_path: Path) -> None:
    CARRIERS[carrier](tmp_path / carrier, SHAPES[shape]())
    refuse_everywhere(carrier, moeify, tmp_path)


@pytest.mark.sampled
@pytest.mark.parametrize("shape", RAW)
@pytest.mark.parametrize("name", ["m.pt", "archive.pt", "m.bin", "m.pkl"])
def test_a_pickle_written_by_hand(shape: str, name: str, moeify: Run, tmp_path: Path) -> None:
    archive(tmp_path / name, RAW[shape]) if name == "archive.pt" else (tmp_path / name).write_bytes(RAW[shape])
    refuse_everywhere(name, moeify, tmp_path)


def refuse_everywhere(name: str, moeify: Run, folder: Path) -> None:
    """Every command that reads such files refuses this one."""
    for use in USES:
        if "moe " in use and not (folder / "moe").exists():
            api.convert(stack().eval(), folder / "moe", experts=4, example=example())
        before = sorted(path.name for path in folder.iterdir()) + ["model.pt"] * ("model.pt" in use)
        done = moeify(use.format(name))
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), (use, done)
        assert done.err.startswith("moeify: error: ")
        assert name in done.err
        assert "internal" not in done.err
        assert {path.name for path in folder.iterdir()} == set(before)


@pytest.mark.slow
def test_a_folder_is_read_from_its_safetensors_alone(moeify: Run, tmp_path: Path) -> None:
    FILES["llama"](tmp_path / "llama")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "modeling_llama.py"):
        torch.save(Trap(eval, TOUCH), tmp_path / "llama" / name)
    assert moeify("inspect llama --quiet") == Outcome(0, "", "")
    (tmp_path / "llama" / "model.safetensors").unlink()
    done = moeify("inspect llama")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "pytorch_model.bin" in done.err


def test_a_model_with_code_of_its_own_is_refused(moeify: Run, tmp_path: Path) -> None:
    FILES["llama"](tmp_path / "llama")
    config = tmp_path / "llama" / "config.json"
    mine = '{"auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}, "model_type": "mine",'
    config.write_text(config.read_text("utf-8").replace('"model_type": "llama",', "").replace("{", mine, 1), "utf-8")
    (tmp_path / "llama" / "mine.py").write_text(TOUCH, "utf-8")
    done = moeify("inspect llama")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "needs Python code of its own, which is not run" in done.err
