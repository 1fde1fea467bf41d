"""What a source should not hold: one clear line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.small_tokenizers import TEXT, byte_level
from moeify.data import open_data
from moeify.errors import InputError, MoeifyError, UsageError

IDS = torch.arange(12).reshape(4, 3)
ONE_ID = {"input_ids": torch.ones(1, 3, dtype=torch.int64)}
ONE_FLOAT = {"x": torch.ones(1, 4)}

Write = Callable[[Path], Any]


def half(write: Write) -> Write:
    """The same file, cut in the middle."""

    def cut(path: Path) -> None:
        write(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return cut


def content(value: str | bytes) -> Write:
    return lambda path: path.write_bytes(value if isinstance(value, bytes) else value.encode())


def lines(*values: Any) -> Write:
    return content("\n".join(json.dumps(value) for value in values))


def saved(value: Any) -> Write:
    return lambda path: torch.save(value, path)


def npz(**arrays: Any) -> Write:
    return lambda path: np.savez(path, **arrays)


def nothing(path: Path) -> None:
    """Writes no file."""


FILES: dict[str, tuple[str, Write, dict[str, Any], str]] = {
    "no file": ("a.txt", nothing, {}, "no such file"),
    "a folder": ("a.txt", Path.mkdir, {}, "is a folder; name one file"),
    "an empty text": ("a.txt", content(""), {}, "is empty"),
    "an empty .pt": ("a.pt", content(""), {}, "is empty"),
    "a single token": ("a.txt", content("a"), {}, "holds 1 tokens; give at least 2"),
    "latin-1": ("a.txt", content("été ".encode("latin-1") * 3000), {}, "not UTF-8.*0xe9"),
    "UTF-16": ("a.txt", content(TEXT.encode("utf-16")), {}, "not UTF-8"),
    "garbage without a suffix": ("a", content(bytes(range(256)) * 40), {}, "holds no data that moeify reads"),
    "a CSV": ("a.csv", content("a,b\n1,2\n"), {}, "holds no data that moeify reads"),
    "text without a tokenizer": ("a.txt", content(TEXT), {"tokenizer": None}, "is text, which needs a tokenizer"),
    "something else as the tokenizer": ("a.txt", content(TEXT), {"tokenizer": object()}, "tokenizer object cannot be used"),
    "text for pixels": ("a.txt", content(TEXT), {"example": ONE_FLOAT}, "text cannot fill the model's input 'x'"),
    "text ids beyond the vocabulary": ("a.txt", content(TEXT), {"vocabulary": 100}, r"ids must be below 100 \(the model's voc"),
    "a line that is not JSON": ("a.jsonl", content('{"text": "a b c"}\nnot json\n'), {}, "line 2: is not JSON"),
    "a line without text": ("a.jsonl", lines({"content": "a"}), {}, "line 1: each line needs a field \"text\".*'content'"),
    "a line that is a list": ("a.jsonl", lines([1, 2]), {}, "each line needs a field \"text\".*found list"),
    "a text that is a number": ("a.jsonl", lines({"text": 3}), {}, "field \"text\" with a string"),
    "empty documents": ("a.jsonl", lines({"text": ""}), {}, "holds 0 tokens"),
    "latin-1 lines": ("a.jsonl", content('{"text": "été"}'.encode("latin-1")), {}, "not UTF-8"),
    "a garbage .pt": ("a.pt", content("no tensors here"), {}, "is damaged, or no .pt file"),
    "a garbage .npz": ("a.npz", content("no tensors here"), {}, "is damaged, or no .npz file"),
    "a garbage .safetensors": ("a.safetensors", content("no tensors here"), {}, "is damaged, or no .safetensors file"),
    "a cut .pt": ("a.pt", half(saved({"input_ids": IDS})), {}, "is damaged or cut short"),
    "a cut .npz": ("a.npz", half(npz(input_ids=IDS.numpy())), {}, "is damaged or cut short"),
    "a cut .safetensors": (
        "a.safetensors", half(lambda p: save_file({"input_ids": torch.ones(99, 9)}, p)), {}, "is damaged or cut short",
    ),
    "a cut legacy .pt": (
        "a.pt", half(lambda p: torch.save(IDS, p, _use_new_zipfile_serialization=False)), {}, "is damaged or cut short",
    ),
    "Python objects in a .pt": ("a.pt", saved({"f": Path("x")}), {}, "Python objects, which are never executed"),
    "Python objects in an .npz": ("a.npz", npz(x=np.array([{}, []], dtype=object)), {}, "Python objects, which are never"),
    "strings in an .npz": ("a.npz", npz(x=np.array(["a", "b"])), {}, "holds <U1, which is no tensor"),
    "a number in a .pt": ("a.pt", saved(3), {}, "must hold a dict of tensors.*found int"),
    "a list of numbers in a .pt": ("a.pt", saved({"a": [1, 2]}), {}, "entry 'a' must be a tensor, found list"),
    "an empty dict": ("a.pt", saved({}), {}, "holds no tensor"),
    "a scalar": ("a.pt", saved({"a": torch.tensor(3)}), {}, "'a' is a single number"),
    "unequal rows": ("a.pt", saved({"a": IDS, "b": IDS[:2]}), {}, "unequal numbers of rows: a 4, b 2"),
    "no rows": ("a.pt", saved({"a": IDS[:0]}), {}, "holds no row"),
    "other names": ("a.npz", npz(tokens=IDS.numpy()), {"example": ONE_ID}, "names are input_ids; found tokens"),
    "a name too many": (
        "a.pt", saved({"input_ids": IDS, "labels": IDS}), {"example": ONE_ID}, "names are input_ids; found input_ids, labels",
    ),
    "a position too many": ("a.pt", saved((IDS, IDS)), {"example": (IDS,)}, "positions are 0; found 0, 1"),
    "floats for ids": ("a.pt", saved({"input_ids": IDS.float()}), {"example": ONE_ID}, "must hold integers.*found torch.float"),
    "ids for floats": ("a.pt", saved({"x": IDS}), {"example": ONE_FLOAT}, "must hold floats.*found torch.int64"),
    "a wrong width": (
        "a.pt", saved({"x": torch.ones(5, 3)}), {"example": ONE_FLOAT}, r"must have the shape \[rows, 4\], found \[5, 3\]",
    ),
    "a wrong number of dims": (
        "a.pt", saved({"input_ids": IDS[0]}), {"example": ONE_ID}, r"the shape \[rows, any\], found \[3\]",
    ),
    "NaN": ("a.pt", saved({"x": torch.tensor([[1.0, float("nan")]])}), {}, "'x' holds NaN or infinite values"),
    "infinity": ("a.pt", saved((torch.tensor([[float("inf")]]),)), {}, "input 0 holds NaN or infinite values"),
    "negative ids": ("a.pt", saved({"input_ids": -IDS}), {}, "holds the token id -11, ids must be at least 0"),
    "ids beyond the vocabulary": (
        "a.pt", saved({"input_ids": IDS}), {"vocabulary": 11}, "holds the token id 11, ids must be below 11",
    ),
    "positional ids beyond the vocabulary": (
        "a.pt", saved((IDS,)), {"vocabulary": 5, "input_names": ("input_ids",)}, "'input_ids' holds the token id 11",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_files(case: str, tmp_path: Path) -> None:
    name, write, options, message = FILES[case]
    path = tmp_path / name
    write(path)
    with pytest.raises(InputError, match=message) as caught:
        list(open_data(path, **{"tokenizer": byte_level(), **options}))
    assert str(path) in str(caught.value) or "tokenizer" in options
    assert "\n" not in str(caught.value)


MODULE = "data.batches_for_tests"
SOURCES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a callable that raises": (f"{MODULE}:fails_at_once", {}, "the call failed: RuntimeError: the disk is on fire"),
    "a callable that raises later": (f"{MODULE}:fails_later", {}, "failed at batch 1: RuntimeError: the second batch is lost"),
    "a callable that yields nothing": (f"{MODULE}:yields_nothing", {}, "holds no batch"),
    "a callable that yields text": (f"{MODULE}:yields_text", {}, "batch 0: a batch is a dict, a tuple or a tensor, not str"),
    "a callable that yields lists": (f"{MODULE}:yields_arrays", {}, "a batch holds no torch.Tensor"),
    "a callable that gives None": (f"{MODULE}:gives_none", {}, "must give an iterable of batches, not NoneType"),
    "a callable with arguments": (f"{MODULE}:needs_an_argument", {}, "the call failed: TypeError"),
    "a number": (f"{MODULE}:number", {}, "must give an iterable of batches, not int"),
    "wrong names from a callable": (f"{MODULE}:ids", {"example": ONE_FLOAT}, "names are x; found input_ids"),
    "an empty list": ([], {}, "holds no batch"),
    "a list of strings": (["absent"], {}, "absent: no such file"),
    "a string among batches": (["a", (IDS,)], {}, "a batch is a dict, a tuple or a tensor"),
    "a bare tensor": (IDS, {}, "must give an iterable of batches, not Tensor"),
    "an empty batch": ([{"input_ids": IDS[:0]}], {}, "a batch holds no row"),
    "NaN in memory": ([(torch.tensor([float("nan")]),)], {}, "holds NaN"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_python_sources(case: str) -> None:
    source, options, message = SOURCES[case]
    with pytest.raises(InputError, match=message) as caught:
        list(open_data(source, **options))
    assert "\n" not in str(caught.value)


USES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "an unknown module": ("no_such_module.here:batches", {}, "no module 'no_such_module'"),
    "an unknown attribute": (f"{MODULE}:idss", {}, "has no 'idss'.*did you mean 'ids'"),
    "a window of one": ([(IDS,)], {"window": 1}, "window is 1: it must be at least 2"),
    "no batch": ([(IDS,)], {"batch": 0}, "batch is 0: it must be at least 1"),
    "no tokens": ([(IDS,)], {"tokens": 0}, "tokens is 0: it must be at least 2"),
}


@pytest.mark.parametrize("case", USES)
def test_wrong_use(case: str) -> None:
    source, options, message = USES[case]
    with pytest.raises(UsageError, match=message):
        open_data(source, **options)


def test_a_window_without_room_for_text(tmp_path: Path) -> None:
    from data.small_tokenizers import bert_like

    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(UsageError, match="window is 3: it must leave room for 2 tokens besides the special ones"):
        open_data(tmp_path / "a.txt", tokenizer=bert_like(), window=3)


@pytest.mark.parametrize(
    ("source", "message"),
    [("import sys; sys.exit(3)", "SystemExit: 3"), ("1 / 0", "ZeroDivisionError"), ("import no_such_thing", "no_such_thing")],
)
def test_a_module_that_cannot_be_imported(source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_on_import.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MoeifyError, match=f"importing breaks_on_import failed: .*{message}"):
        open_data("breaks_on_import:batches")
