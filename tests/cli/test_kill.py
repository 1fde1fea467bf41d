"""A conversion that is killed at any moment leaves no folder or a whole one, and can be gone on with to the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import random
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

import moeify
from cli.command_line import TESTS
from cli.small_files import write_files
from cli.test_resume import MARKERS, contents

#: How many moments a signal is tried at.
MOMENTS = 50


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServerContext]:
    """Processes that come into being with everything imported, so that a run takes no longer than its work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cli.warmed", "cli.test_kill"])
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (TESTS.parent, TESTS.parent / "passes", TESTS)))
    os.environ["OMP_NUM_THREADS"] = "1"
    yield context
    os.environ.clear()
    os.environ.update(before)


def run(line: str, folder: Path, ready: Event) -> None:
    """What such a process does: the command, in that folder, in silence. Signals before and after it are not the command's."""
    from moeify.cli import main

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ready.set()
    os.chdir(folder)
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
    sys.exit(main(shlex.split(line)))


def started(server: ForkServerContext, line: str, folder: Path) -> multiprocessing.process.BaseProcess:
    ready = server.Event()
    process = server.Process(target=run, args=(line, folder, ready))
    process.start()
    assert ready.wait(60)
    return process


@pytest.mark.slow
@pytest.mark.xdist_group("kill")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_killed_at_any_moment(number: signal.Signals, server: ForkServerContext, tmp_path: Path, kept: Path) -> None:
    write_files(["deep.pt"], tmp_path, kept)
    started(server, MARKERS, tmp_path).join()
    (tmp_path / "out").rename(tmp_path / "whole")
    begun = time.monotonic()
    started(server, MARKERS, tmp_path).join()
    length = time.monotonic() - begun
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "out") == whole
    unfinished = resumed = 0
    moments = random.Random(0)
    for _ in range(MOMENTS):
        clear(tmp_path)
        process = started(server, MARKERS, tmp_path)
        process.join(length * moments.random())
        with suppress(ProcessLookupError):  # it has ended by itself
            os.kill(process.pid or 0, number)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL if number == signal.SIGKILL else 130)
        if (tmp_path / "out").exists():
            assert contents(tmp_path / "out") == whole
            continue
        unfinished += 1
        layers = len(list((tmp_path / ".out.moeify-journal").glob("layer-*.safetensors")))
        resumed += layers > 0
        again = started(server, f"{MARKERS} --resume", tmp_path)
        again.join()
        assert again.exitcode == 0
        assert contents(tmp_path / "out") == whole
        assert sorted(os.listdir(tmp_path)) == ["deep.pt", "out", "whole"]
    assert unfinished > MOMENTS // 3
    assert resumed > 0, "no run was killed between two layers: the moments do not cover the work"


def clear(folder: Path) -> None:
    for name in os.listdir(folder):
        if "out" in name:
            shutil.rmtree(folder / name)


@pytest.mark.slow
@pytest.mark.xdist_group("kill")
def test_runs_at_one_time_never_mix_in_one_output(server: ForkServerContext, tmp_path: Path, kept: Path) -> None:
    write_files(["deep.pt"], tmp_path, kept)
    for _ in range(5):
        processes = [started(server, f"{MARKERS} --seed {seed} --force", tmp_path) for seed in range(4)]
        for process in processes:
            process.join()
        codes = [process.exitcode for process in processes]
        assert set(codes) <= {0, 1}
        assert 0 in codes
        assert moeify.load(tmp_path / "out", factory="cli.tiny_models:deep_stack") is not None
        assert sorted(os.listdir(tmp_path)) == ["deep.pt", "out"]
