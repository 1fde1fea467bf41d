"""What can happen to a file, as hypothesis draws it: to its bytes, to the tree that it spells, to a part of a zip."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

import tomli_w
from hypothesis import strategies as st

#: Bytes that parsers stumble over: lengths beyond any file, numbers that are none, deep nests, torn characters.
TOKENS = (
    b"\0" * 8, b"\xff" * 8, (1 << 60).to_bytes(8, "little"), (1 << 31).to_bytes(4, "little"), b"\xff\xff\xff\x7f",
    b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 5000, b"1152921504606846976", b"[" * 3000, b'{"a":' * 3000, b"{" * 50,
    b'"', b"'", b"\\ud800", b"\\u0000", "\u202e\u00df\U0001f600".encode(), b"\xc3", b"\xed\xa0\x80", b"\r\n", b"\n", b"null",
    b"true", b"../", b"\x80\x05", b"PK\x03\x04", b".", b"=", b"[[pass]]", b"__metadata__", b'"F64"',
)  # fmt: skip

#: Values of a wrong kind, and some of the right one that no file of ours holds.
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, -1, 1 << 31, 1 << 60]), st.floats(),
    st.text(max_size=6), st.sampled_from(["", "none", "linear", "F64", "float32", "../x", "/etc/passwd", "nan", "a\0b"]),
    st.lists(st.integers(-3, 3), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, content: bytes, head: int = 1 << 62) -> bytes:
    """The bytes with up to four things done to them, within the first `head` bytes as often as behind."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        near = min(len(found), head)
        place = draw(st.integers(0, near) | st.integers(0, len(found)))
        length = draw(st.integers(1, 9) | st.integers(1, 4000))
        match draw(st.sampled_from(["flip", "cut", "drop", "double", "put", "over"])):
            case "flip" if place < len(found):
                found[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del found[place:]
            case "drop":
                del found[place : place + length]
            case "double":
                found[place:place] = found[place : place + length]
            case "put":
                found[place:place] = draw(st.sampled_from(TOKENS) | st.binary(max_size=9))
            case "over":
                token = draw(st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=9))
                found[place : place + len(token)] = token
    return bytes(found)


@st.composite
def edited(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with up to three values replaced, taken out, doubled or renamed."""
    found = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        parent = found
        while isinstance(parent, dict | list) and parent:
            keys: list[Any] = sorted(parent) if isinstance(parent, dict) else list(range(len(parent)))
            key = draw(st.sampled_from(keys))
            if not isinstance(parent[key], dict | list) or not parent[key] or draw(st.integers(0, 3)) == 0:
                _edit(draw, parent, key)
                break
            parent = parent[key]
    return found


def _edit(draw: st.DrawFn, parent: Any, key: Any) -> None:
    match draw(st.sampled_from(["replace", "replace", "take out", "double", "rename"])):
        case "replace":
            parent[key] = draw(VALUES)
        case "take out":
            del parent[key]
        case "double" if isinstance(parent, list):
            parent.append(parent[key])
        case "rename" if isinstance(parent, dict):
            parent[draw(st.text(max_size=4) | st.just(key + "x"))] = parent.pop(key)


def json_of(tree: Any) -> st.SearchStrategy[bytes]:
    """The tree edited, as JSON (with NaN and Infinity, as Python's own writer spells them)."""
    return edited(tree).map(lambda found: json.dumps(found).encode())


def toml_of(tree: Any) -> st.SearchStrategy[bytes]:
    """The tree edited, as TOML, as far as TOML can spell it."""
    return edited(tree).map(lambda found: tomli_w.dumps(_spellable(found)).encode("utf-8", "replace"))


def _spellable(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _spellable(value) for key, value in tree.items() if value is not None}
    return [_spellable(value) for value in tree if value is not None] if isinstance(tree, list) else tree


def safetensors_of(content: bytes) -> st.SearchStrategy[bytes]:
    """The header edited, its length put right."""
    size = int.from_bytes(content[:8], "little")
    headers = json_of(json.loads(content[8 : 8 + size]))
    return headers.map(lambda header: len(header).to_bytes(8, "little") + header + content[8 + size :])


def zip_of(content: bytes, part: Callable[[bytes], st.SearchStrategy[bytes]] = damaged) -> st.SearchStrategy[bytes]:
    """A part of the zip damaged, its checksum put right."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        parts = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]

    def zipped(index: int, new: bytes) -> bytes:
        """The zip with another content of that part."""
        file = BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for i, (name, old) in enumerate(parts):
                archive.writestr(name, new if i == index else old)
        return file.getvalue()

    each = [part(old).map(partial(zipped, i)) for i, (_, old) in enumerate(parts)]
    return st.one_of(each[:1] * 4 + each)  # the first holds the structure
