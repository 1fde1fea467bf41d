"""What a file takes of memory, in a process of its own.

`python -m moeify.speed.resident OPTIONS` takes options as JSON and the inputs of a run as .npz on standard input, and
prints two numbers of bytes.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moeify.errors import InputError
from moeify.runtime.session import session
from moeify.speed.workload import Array, Place, caller


@dataclass(frozen=True)
class Resident:
    """Bytes in memory above what the process had before the file was loaded: then, and after a run. Pages of the file that are
    mapped count once they were touched."""

    loaded: int
    run: int


def measure_resident(path: Path, threads: int, native: bool | None, feeds: Mapping[str, Array], *, cached: bool) -> Resident:
    """Loads the file in a new process, and runs it once. Raises InputError where it ends early."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **feeds)
    options = json.dumps({"path": str(path), "threads": threads, "native": native, "cached": cached})
    command = [sys.executable, "-m", __name__, options]
    done = subprocess.run(command, input=buffer.getvalue(), capture_output=True, check=False)
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or [f"code {done.returncode}"])[-1]
        raise InputError(f"{path}: its memory cannot be measured: {reason}")
    loaded, run = map(int, done.stdout.split())
    return Resident(loaded, run)


def resident_bytes() -> int:
    """Of this process, now."""
    status = Path("/proc/self/statm")
    if status.is_file():
        import resource

        return int(status.read_text().split()[1]) * resource.getpagesize()
    import os

    listed = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return int(listed.stdout) * 1024


def main(text: str) -> None:
    import onnxruntime  # noqa: F401, as its own memory is not that of the file

    options = json.loads(text)
    feeds = dict(np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False))
    tokens = next(iter(feeds.values())).shape[-1]
    before = resident_bytes()
    built = session(options["path"], options["threads"], native=options["native"])
    loaded = resident_bytes()
    caller(built, cached=options["cached"], place=Place(tokens))(feeds)
    print(loaded - before, resident_bytes() - before)


if __name__ == "__main__":
    main(sys.argv[1])
