"""Text files, piece by piece: a piece is short enough for memory and cut where no token is cut."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from moeify.errors import InputError

#: Characters read at a time.
PIECE = 1 << 18

# Before a line end behind a letter or digit no tokenizer of the field joins the two sides (GPT-2's pattern joins a run of
# white space, Llama 3's joins a full stop with the line ends behind it), so the pieces give the tokens of the whole.
_CLEAN_CUT = re.compile(r"\w(?=\n)")
_CUTS = (_CLEAN_CUT, re.compile(r".(?=\n)", re.DOTALL), re.compile(r".(?=\s)", re.DOTALL))


def text_pieces(path: Path, size: int = PIECE) -> Iterator[str]:
    """The text of a UTF-8 file in pieces of about `size` characters, cut before line ends. Raises InputError."""
    rest = ""
    with path.open(encoding="utf-8-sig") as file:
        while block := _read(file, size, path):
            rest += block
            if len(rest) >= size:
                cut = _last_cut(rest)
                yield rest[:cut]
                rest = rest[cut:]
    if rest:
        yield rest


def json_documents(path: Path) -> Iterator[str]:
    """The field "text" of each line of a JSON-lines file; blank lines and empty texts are passed over.

    Raises InputError with the line number for a line that is no JSON object with a string in "text".
    """
    with path.open(encoding="utf-8-sig") as file:
        number = 0
        while line := _read_line(file, path):
            number += 1
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: is not JSON ({error}); write one object a line") from error
            if not isinstance(document, dict) or not isinstance(document.get("text"), str):
                found = (
                    f"the fields {', '.join(map(repr, document))}" if isinstance(document, dict) else type(document).__name__
                )
                raise InputError(f'{path}, line {number}: each line needs a field "text" with a string; found {found}')
            if document["text"]:
                yield document["text"]


def _last_cut(text: str) -> int:
    """Where to cut: behind the last character that a pattern matches, the cleanest pattern first; else at the end."""
    for pattern in _CUTS:
        ends = [match.end() for match in pattern.finditer(text)]
        if ends:
            return ends[-1]
    return len(text)


def _read(file: TextIO, size: int, path: Path) -> str:
    try:
        return file.read(size)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def _read_line(file: TextIO, path: Path) -> str:
    try:
        return file.readline()
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def _not_utf8(path: Path, error: UnicodeDecodeError) -> InputError:
    byte = error.object[error.start]
    return InputError(f"{path}: is not UTF-8 text (found the byte 0x{byte:02x}); convert it, for instance with iconv")
