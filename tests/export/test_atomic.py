"""Results appear whole or not at all, whatever ends the run that writes them."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moeify.errors import OutputError
from moeify.export.atomic import check_target, whole_file, whole_folder


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _fill(folder: Path, text: str = "new") -> None:
    (folder / "inner").mkdir()
    (folder / "moeify.json").write_text("{}")
    (folder / "a.txt").write_text(text)
    (folder / "inner" / "b.txt").write_text(text)


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "down" / "out"
    with whole_folder(target, force=False) as folder:
        assert not target.exists()
        _fill(folder)
        assert folder.name == "out"
    assert _names(target) == ["a.txt", "inner", "moeify.json"]
    assert _names(target.parent) == ["out"]


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    with whole_file(tmp_path / "m.onnx", force=False) as path:
        path.write_text("new")
        assert _names(tmp_path) != ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "new"
    assert _names(tmp_path) == ["m.onnx"]


def test_permissions_are_those_of_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with whole_folder(tmp_path / "out", force=False):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("force", [False, True])
def test_an_exception_leaves_everything_as_it_was(stop: type[BaseException], force: bool, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if force:
        target.mkdir()
        (target / "moeify.json").write_text("{}")
        (target / "old.txt").write_text("old")

    def fail() -> None:
        with whole_folder(target, force=force) as folder:
            _fill(folder)
            raise stop

    with pytest.raises(stop):
        fail()
    assert _names(tmp_path) == (["out"] if force else [])
    assert not force or (target / "old.txt").read_text() == "old"


def test_force_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for text in ("old", "new"):
        with whole_folder(target, force=True) as folder:
            _fill(folder, text)
        with whole_file(tmp_path / "f", force=True) as path:
            path.write_text(text)
    assert (target / "a.txt").read_text() == (tmp_path / "f").read_text() == "new"
    assert _names(tmp_path) == ["f", "out"]


def test_a_link_is_followed_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with whole_folder(tmp_path / "link", force=False) as folder:
        _fill(folder)
    assert (tmp_path / "link").is_symlink()
    assert _names(tmp_path / "real") == ["a.txt", "inner", "moeify.json"]


def test_the_old_result_comes_back_when_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    with whole_folder(target, force=False) as folder:
        _fill(folder, "old")
    rename = Path.rename

    def fail_once(self: Path, to: Path) -> Path:
        if to == target and "part" in str(self):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OutputError, match="Input/output error"), whole_folder(target, force=True) as folder:
        _fill(folder, "new")
    assert (target / "a.txt").read_text() == "old"
    assert _names(tmp_path) == ["out"]


def test_a_result_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def write_folder() -> None:
        with whole_folder(tmp_path / "out", force=False) as folder:
            _fill(folder)
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()

    def write_file() -> None:
        with whole_file(tmp_path / "f", force=False) as path:
            path.write_text("mine")
            (tmp_path / "f").write_text("theirs")

    for write in (write_folder, write_file):
        with pytest.raises(OutputError, match="has appeared"):
            write()
    assert (tmp_path / "f").read_text() == "theirs"
    assert _names(tmp_path / "out") == ["theirs"]


def _full(folder: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _too_large(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        (folder / "large").write_bytes(bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize(
    ("write", "message"), [(_full, "No space left on device"), (_too_large, "File too large")], ids=["full", "limit"]
)
def test_a_disk_that_takes_no_more_is_one_line(write: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"out: cannot be written: {message}$"), whole_folder(tmp_path / "out", False) as part:
        write(part)
    assert _names(tmp_path) == []


#: caption, what stands there, force, folder wanted, what the message says
REFUSED: list[tuple[str, Callable[[Path], object], bool, str]] = [
    ("a full folder", lambda p: (p / "out" / "x").mkdir(parents=True), False, "exists already; .*--force"),
    ("a folder of somebody else, by force", lambda p: (p / "out" / "x").mkdir(parents=True), True, "moeify did not write it"),
    ("a file", lambda p: (p / "out").touch(), False, "exists already"),
    ("a file, by force", lambda p: (p / "out").touch(), True, "is a file"),
]


@pytest.mark.parametrize(("make", "force", "message"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_stands_there_is_kept(make: Callable[[Path], object], force: bool, message: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(OutputError, match=message), whole_folder(tmp_path / "out", force):
        pass
    assert _names(tmp_path) == ["out"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "out" / "x").mkdir(parents=True)
    (tmp_path / "out" / "moeify.json").touch()
    with pytest.raises(OutputError, match="is a folder"), whole_file(tmp_path / "out", force=True):
        pass


def test_a_place_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(OutputError, match=r"as .*/f is a file"):
        check_target(tmp_path / "f" / "out", force=False)


def test_a_read_only_place_is_refused_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *args, **options: False)  # as for a user other than root
    with pytest.raises(OutputError, match="read-only; choose another place"):
        check_target(tmp_path / "out", force=False)


def test_the_current_folder_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    for place in (Path(".."), tmp_path, Path("/")):
        with pytest.raises(OutputError, match="not replaced even with --force"):
            check_target(place, force=True)


#: Whoever starts tests in the background has them ignore SIGINT, and their children with them.
_RUN = """
import signal, sys, time
from pathlib import Path
from moeify.export.atomic import whole_folder
signal.signal(signal.SIGINT, signal.default_int_handler)
with whole_folder(Path(sys.argv[1]), force=True) as folder:
    (folder / "moeify.json").write_text("{}")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_run_leaves_no_result_and_the_next_one_clears_up(stop: signal.Signals, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", _RUN, str(target)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "writing\n"
        with whole_folder(tmp_path / "other", force=False):
            assert len([n for n in _names(tmp_path) if n.startswith(".out.")]) == 1
        run.send_signal(stop)
        run.wait()
    assert not target.exists()
    left = [name for name in _names(tmp_path) if name != "other"]
    assert all(name.startswith(".out.moeify-part-") for name in left)
    assert len(left) == (0 if stop == signal.SIGINT else 1)
    with whole_folder(target, force=False) as folder:
        _fill(folder)
    assert _names(tmp_path) == ["other", "out"]


def test_a_run_that_is_still_writing_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", _RUN.replace("time.sleep(60)", "sys.stdin.readline()"), str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        assert run.stdin is not None
        run.stdout.readline()
        with whole_folder(target, force=True) as folder:
            _fill(folder)
        run.stdin.write("go on\n")
        run.stdin.flush()
        started = time.monotonic()
        assert run.wait(timeout=30) == 0
        assert time.monotonic() - started < 30
    assert _names(target) == ["moeify.json"]
    assert _names(tmp_path) == ["out"]
