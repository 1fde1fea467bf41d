"""Large blocks that are freed are given back, whatever is kept between them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from moeify.data import heap

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other mallocs have rules of their own")

#: Frees large blocks among small ones that stay, and prints how many MiB of 80 went back; in a process of its own, as the
#: heap of this one has holes of every size, and without torch, which takes its time.
WORK = """
import runpy, sys
from contextlib import nullcontext
from pathlib import Path

def resident():
    return int(Path("/proc/self/status").read_text("utf-8").partition("RssAnon:")[2].split()[0]) >> 10

larger = bytearray(20 << 20)
del larger
kept = []
for apart in (runpy.run_path(sys.argv[1])["large_blocks_apart"](), nullcontext()):
    with apart:
        large = []
        for _ in range(10):
            large.append(bytearray(b"x") * (8 << 20))
            kept.append(bytearray(b"x") * (2 << 20))
        before = resident()
        large.clear()
        print(before - resident())
"""


def printed(code: str, environment: dict[str, str]) -> list[float]:
    """The numbers that the code prints in a process of its own, which is given the module's file."""
    command = [sys.executable, "-c", code, heap.__file__]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment})
    return [float(line) for line in run.stdout.split()]


def given_back(**environment: str) -> list[float]:
    """MiB of 80 that went back when they were freed: inside `large_blocks_apart`, and after it."""
    return printed(WORK, environment)


def test_large_blocks_go_back_when_they_are_freed() -> None:
    inside, afterwards = given_back()
    assert inside > 75
    assert afterwards < 20, "afterwards malloc is as it was"


def test_what_the_user_has_set_stays() -> None:
    inside, afterwards = given_back(MALLOC_MMAP_THRESHOLD_=str(32 << 20))
    assert inside < 20
    assert afterwards < 20


#: Fills a block again and again, as a layer's temporaries are, and prints how many pages were new each time on average.
REFILL = """
import resource, runpy, sys

heap = runpy.run_path(sys.argv[1])

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        block = bytearray(size)
        for i in range(0, size, 4096):
            block[i] = 1
        del block
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 8 * 4096 / size

with heap["blocks_kept"]():
    bytearray(64 << 20)
    heap["close_holes"]()
    found = [faults(size << 20) for size in (2, 40, 60)]
    print(max(found))
print(faults(40 << 20))
"""


def new_pages(**environment: str) -> list[float]:
    """The part of a block's pages that were new, inside `blocks_kept` and after it."""
    return printed(REFILL, environment)


def test_kept_blocks_are_used_again_until_the_end() -> None:
    inside, afterwards = new_pages()
    assert inside < 0.2, "all but the first time the pages are there"
    assert afterwards > 0.9


def test_what_the_user_has_set_is_not_kept_either() -> None:
    assert min(new_pages(MALLOC_MMAP_THRESHOLD_=str(1 << 20))) > 0.9
