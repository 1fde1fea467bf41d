"""A reader gives a value or a MoeifyError of one line: nothing else, soon, in little memory, and no code of the file runs.

What went wrong once, or would without a check of ours, stands in corpus/READER/, and is read again by every run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from fuzz.readers import READERS, Reader
from moeify.errors import MoeifyError

CORPUS = Path(__file__).parent / "corpus"

#: Seconds that one small file may take, on a machine that is busy.
LONGEST = 10.0
#: Bytes that the process may grow by while it reads small files.
LARGEST = 300 << 20

EACH = pytest.mark.parametrize("name", READERS)
#: Files that were read wrongly once, by their readers.
KEPT = [
    pytest.param(name, file, id=file.name) for name in READERS for file in sorted((CORPUS / name.replace(" ", "-")).glob("*"))
]

pytestmark = pytest.mark.timeout(300)

#: What code of a file would have to do to matter.
_DEEDS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "shutil.rmtree", "webbrowser.open")
_seen: list[str] = []
_watching = False


def _watch(event: str, arguments: Any) -> None:
    if _watching and event in _DEEDS:
        _seen.append(event)


sys.addaudithook(_watch)


@contextmanager
def watched() -> Iterator[None]:
    """Nothing is started, deleted or connected to meanwhile."""
    global _watching
    _watching = True
    try:
        yield
    finally:
        _watching = False
    assert not _seen


def held(reader: Reader, content: bytes, folder: Path) -> bool:
    """Was the file read? Asserts that it was refused in one line otherwise."""
    path = folder / reader.name
    path.write_bytes(content)
    began = time.monotonic()
    try:
        with watched():
            reader.read(path)
    except MoeifyError as error:
        message = str(error)
        assert message.strip()
        assert len(message.splitlines()) == 1, message
        return False
    finally:
        assert time.monotonic() - began < LONGEST
    return True


@pytest.fixture
def small() -> Iterator[None]:
    """The test needs little memory."""
    refs, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not refs.exists():
        yield
        return

    def size(field: str) -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1]) << 10

    refs.write_text("5")  # the peak is counted from here
    before = size("VmRSS")
    yield
    assert size("VmHWM") - before < LARGEST


@EACH
def test_the_whole_file_is_read(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    reader.beside(tmp_path)
    assert held(reader, reader.whole(), tmp_path)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("name", "file"), KEPT)
def test_what_went_wrong_once(name: str, file: Path, tmp_path: Path) -> None:
    READERS[name].beside(tmp_path)
    held(READERS[name], file.read_bytes(), tmp_path)


def fuzz(name: str, folder: Path, examples: int, derandomize: bool) -> None:
    reader = READERS[name]
    reader.beside(folder)

    @settings(
        max_examples=examples // reader.slowness, derandomize=derandomize, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )  # fmt: skip
    @given(reader.files())
    def read(content: bytes) -> None:
        held(reader, content, folder)

    read()


@pytest.mark.sampled
@pytest.mark.usefixtures("small")
@EACH
def test_damaged_files(name: str, tmp_path: Path) -> None:
    fuzz(name, tmp_path, 80, derandomize=True)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@EACH
def test_many_damaged_files(name: str, tmp_path: Path) -> None:
    """Others in every run; in CI always the same, so that the gate says the same of the same code."""
    fuzz(name, tmp_path, 600, derandomize=bool(os.environ.get("CI")))
