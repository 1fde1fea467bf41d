"""The command as a process: how it starts, and how it ends when it is not let to end well."""

from __future__ import annotations

import errno
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cli.command_line import Outcome, arguments, environment, process
from cli.small_files import write_files
from cli.tiny_models import TINY
from moeify import api
from moeify.api import planning

Run = Callable[[str], Outcome]

CONVERT = f"convert model.pt -o out {TINY} --experts 4"

#: Data that never end: a conversion on them is always under way.
ENDLESS = f"{CONVERT} --recipe markers --calibrate cli.tiny_models:endless --tokens 1000000000"


@pytest.mark.slow
def test_help_comes_at_once_and_without_torch(tmp_path: Path) -> None:
    def seconds() -> float:
        """Of the processor, so that what else runs on the machine does not count."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert process("--help", tmp_path).code == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert statistics.median(seconds() for _ in range(5)) < 0.5
    code = "import sys; from moeify.cli import main; main(['convert', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


@pytest.mark.slow
def test_ctrl_c_ends_a_conversion_and_leaves_nothing(tmp_path: Path, kept: Path) -> None:
    write_files(["model.pt"], tmp_path, kept)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments(ENDLESS), cwd=tmp_path, env=environment(), text=True, **pipes) as running:
        try:
            wait_for(tmp_path / "reading", running)
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, out, err) == (130, "", "moeify: interrupted\n")
    assert sorted(os.listdir(tmp_path)) == ["model.pt", "reading"]


def wait_for(path: Path, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert running.poll() is None, "it ended before it came so far"
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.01)


def small_files_only() -> None:
    """No file of this process may grow beyond 3,000 bytes: a full disk, as far as writing goes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))


@pytest.mark.slow
def test_a_disk_without_room_is_one_line_and_leaves_what_can_be_gone_on_with(tmp_path: Path, kept: Path) -> None:
    write_files(["model.pt"], tmp_path, kept)
    done = process(f"{CONVERT} --quiet", tmp_path, preexec_fn=small_files_only)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith("moeify: error: ")
    assert "cannot be written" in done.err
    assert "File too large" in done.err
    assert "with --resume" in done.err
    assert sorted(os.listdir(tmp_path)) == [".out.moeify-journal", "model.pt"]
    assert process(f"{CONVERT} --quiet --resume", tmp_path) == Outcome(0, "", "")
    assert sorted(os.listdir(tmp_path)) == ["model.pt", "out"]


FAULTS: list[tuple[str, BaseException, int, str]] = [
    ("the disk is full", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1,
     "moeify: error: out: cannot be written: No space left on device\n"),
    ("Ctrl-C", KeyboardInterrupt(), 130, "moeify: interrupted\n"),
]  # fmt: skip


@pytest.mark.parametrize(("caption", "fault", "code", "line"), FAULTS, ids=[f[0] for f in FAULTS])
@pytest.mark.parametrize("function", ["fsync", "rename"])
def test_a_fault_while_the_result_is_written_leaves_nothing(
    caption: str,
    fault: BaseException,
    code: int,
    line: str,
    function: str,
    moeify: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise fault

    monkeypatch.setattr(os, function, fail)
    done = moeify(CONVERT)
    monkeypatch.undo()
    assert done == Outcome(code, "", line), caption
    assert os.listdir(tmp_path) == ["model.pt"]


def test_a_replaced_folder_is_as_it_was_when_the_replacing_fails(
    moeify: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    assert moeify(f"convert model.pt -o old-folder {TINY} --experts 4 --force").code == 1
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["model.pt", "old-folder"]
    assert (tmp_path / "old-folder" / "precious.txt").read_text("utf-8") == "keep me"


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "moeify: interrupted\n"), (signal.SIGTERM, 143, "moeify: terminated\n")],
    ids=["SIGINT", "SIGTERM"],
)
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_ends_a_run_even_where_someone_swallows_it(
    number: signal.Signals, code: int, line: str, swallowed: bool, moeify: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(*args: Any, **kwargs: Any) -> Any:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except KeyboardInterrupt:
            if not swallowed:
                raise
        raise AttributeError("what was to be imported is not there")

    before = signal.getsignal(number)
    monkeypatch.setattr(api, "convert", signalled)
    assert moeify(CONVERT) == Outcome(code, "", line)
    assert signal.getsignal(number) is before


def test_a_signal_that_was_answered_with_something_else_ends_the_run_at_its_next_step(
    moeify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch.export, whose error for free sizes is taken as a reason to try fixed ones."""

    def answered(*args: Any, **kwargs: Any) -> Any:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        return planning.prepare(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("moeify.api.conversion.prepare", answered)
        assert moeify(CONVERT) == Outcome(130, "", "moeify: interrupted\n")
    assert os.listdir(tmp_path) == ["model.pt"]
    assert moeify(CONVERT).code == 0  # the signal of one run is none of the next


def test_a_result_that_cannot_be_printed_is_said(moeify: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        done = moeify("recipes")
    assert done == Outcome(1, "", "moeify: error: the result cannot be printed: No space left on device\n")


@pytest.mark.parametrize("line", ["recipes", "--help", "--version"])
def test_a_reader_that_leaves_is_no_fault_to_speak_of(line: str, moeify: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        assert moeify(line) == Outcome(1, "", "")


@pytest.mark.parametrize("line", ["--help", "--version"])
def test_a_process_without_room_for_its_answer_says_so(line: str, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            arguments(line), cwd=tmp_path, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "moeify: error: No space left on device\n")


@pytest.mark.parametrize("line", ["--version", "--help"])
def test_a_process_ends_quietly_where_no_one_reads(line: str, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        done = subprocess.run(
            arguments(line), cwd=tmp_path, env=environment(), stdout=nobody, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_a_noisy_factory_is_not_heard(moeify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noisy.py").write_text(
        "import sys, warnings\nprint('out')\nprint('err', file=sys.stderr)\nwarnings.warn('beware')\n"
        "def make():\n    import logging\n    logging.warning('logged')\n    raise ValueError('no\\nluck')\n",
        "utf-8",
    )
    expected = "moeify: error: factory noisy:make: failed: ValueError: no luck; it is called without arguments\n"
    assert moeify("convert model.pt -o out --factory noisy:make") == Outcome(1, "", expected)
    monkeypatch.delitem(sys.modules, "noisy")


def test_a_usage_error_of_a_process_is_one_line(tmp_path: Path) -> None:
    done = process("convert model.pt -o out --experts none", tmp_path)
    assert done == Outcome(2, "", "moeify: error: Invalid value for '--experts': 'none' is not a whole number from 1\n")
