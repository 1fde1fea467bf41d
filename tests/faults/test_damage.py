"""Whatever has happened to an input: an exit code, one line that names it, nothing half-written, no end of waiting."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command_line import Command, Outcome
from faults.input_kinds import BESIDES, KINDS, InputKind

Run = Callable[[], Outcome]

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("damage")]

kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.caption)
guarded = pytest.mark.parametrize("kind", [k for k in KINDS if k.guarded], ids=lambda kind: kind.caption)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where inputs are kept that were written once."""
    return tmp_path_factory.mktemp("written")


@pytest.fixture
def run(
    kind: InputKind, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the kind's command on its input in tmp_path."""
    wanted = {kind.name: kind.write} | {name: write for name, write in BESIDES.items() if name in kind.line.split()}
    for name, write in wanted.items():
        if not (written / name).exists():
            write(written / name)
        (shutil.copytree if (written / name).is_dir() else shutil.copyfile)(written / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    command = Command(capsys)
    return lambda: command(kind.line)


def refused(done: Outcome, left: set[str], word: str = "") -> bool:
    """Was it refused in one line with that word in it, and nothing left behind?"""
    line = done.err.removesuffix("\n")
    told = "\n" not in line and line.startswith("moeify: error: ") and word in line
    return done.code in (1, 2) and done.out == "" and told and names() == left


def names() -> set[str]:
    return {path.name for path in Path.cwd().iterdir()}


def fitting(done: Outcome) -> bool:
    """Was all well?"""
    shutil.rmtree("new", ignore_errors=True)
    return done.code == 0 and "error" not in done.err


@pytest.mark.slow
@kinds
def test_the_whole_input_is_read(kind: InputKind, run: Run) -> None:
    assert fitting(run()), run()


@kinds
def test_a_missing_input_is_named(kind: InputKind, run: Run) -> None:
    Path(kind.damaged).unlink() if Path(kind.damaged).is_file() else shutil.rmtree(kind.damaged)
    done = run()
    assert refused(done, names(), kind.name), done


@kinds
@pytest.mark.parametrize("content", [b"", random.Random(0).randbytes(2000), b"\0" * 2000], ids=["empty", "garbage", "zeros"])
def test_an_input_of_something_else_is_named(content: bytes, kind: InputKind, run: Run) -> None:
    Path(kind.damaged).write_bytes(content)
    done = run()
    assert refused(done, names(), kind.name), done


@pytest.mark.sampled
@kinds
def test_an_input_cut_off_anywhere_is_named(kind: InputKind, run: Run) -> None:
    path = Path(kind.damaged)
    content, draw = path.read_bytes(), random.Random(1)
    for _ in range(20):
        end = draw.randrange(len(content.rstrip()) if kind.cut == "always" else len(content))
        path.write_bytes(content[:end])
        before = names()
        done = run()
        assert refused(done, before, kind.name) or (kind.cut == "perhaps" and fitting(done)), (end, done)


@pytest.mark.sampled
@guarded
def test_a_flipped_bit_is_told(kind: InputKind, run: Run) -> None:
    path = Path(kind.damaged)
    content, draw = path.read_bytes(), random.Random(2)
    assert kind.guarded is not None
    places = list(kind.guarded(content))
    for _ in range(20):
        flip(path, content, place := draw.choice(places), bit := draw.randrange(8))
        before = names()
        done = run()
        assert refused(done, before, kind.name), (place, bit, done)


@pytest.mark.slow
@kinds
def test_a_flipped_bit_anywhere_is_told_or_does_no_harm(kind: InputKind, run: Run) -> None:
    path = Path(kind.damaged)
    content, draw = path.read_bytes(), random.Random(3)
    for _ in range(8):
        flip(path, content, place := draw.randrange(len(content)), bit := draw.randrange(8))
        before = names()
        done = run()
        assert refused(done, before) or fitting(done), (place, bit, done)


def flip(path: Path, content: bytes, place: int, bit: int) -> None:
    damaged = bytearray(content)
    damaged[place] ^= 1 << bit
    path.write_bytes(damaged)
