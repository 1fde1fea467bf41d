"""The machine, and what it reaches at best: the roof over every figure."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from moeify.runtime.session import session
from moeify.speed.work import Work

#: Where no cache is told of.
_USUAL_CACHE = 32 * 2**20
#: The stream test takes no more memory than this.
_LONGEST_STREAM = 2**30
_SIDE = 1024


@dataclass(frozen=True)
class Machine:
    """cores: those that this process may use. cache: bytes of the last level."""

    name: str
    cores: int
    cache: int


@dataclass(frozen=True)
class Roof:
    """What so many threads reach: bytes/s read from memory, flop/s of a float32 matrix product in ONNX Runtime."""

    threads: int
    bandwidth: float
    rate: float

    def seconds(self, work: Work, width: float) -> float:
        """The least time of the work with weights of `width` bytes: the longer of reading and computing."""
        return max(work.weights * width / self.bandwidth, work.flops / self.rate)


def this_machine() -> Machine:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return Machine(name, cores(), last_level_cache())


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def last_level_cache() -> int:
    """Bytes; a usual size where the machine does not say."""
    found = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with suppress(OSError, ValueError):
            found.append(int(path.read_text().strip().removesuffix("K")) * 2**10)
    if not found:
        with suppress(OSError, ValueError, subprocess.SubprocessError):
            command = ["sysctl", "-n", "hw.l3cachesize", "hw.l2cachesize"]
            found = [int(line) for line in subprocess.run(command, capture_output=True, text=True).stdout.split()]
    return max(found, default=0) or _USUAL_CACHE


def measure_roof(threads: int, rounds: int = 25) -> Roof:
    """In a second or two: a sum over an array of four times the last-level cache, a product of matrices of 1024 x 1024. The
    best round counts, as what else the machine does can only take away; on one thread by CPU time."""
    array = torch.ones(min(4 * last_level_cache(), _LONGEST_STREAM) // 4)
    clock = time.process_time if threads == 1 else time.perf_counter
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        stream = best(lambda: array.sum(), rounds, clock)
    finally:
        torch.set_num_threads(before)
    with TemporaryDirectory() as folder:
        product = session(_product(Path(folder) / "product.onnx"), threads, native=False)
    x = np.ones((_SIDE, _SIDE), dtype=np.float32)
    return Roof(threads, array.nbytes / stream, 2 * _SIDE**3 / best(lambda: product.run(None, {"x": x}), rounds, clock))


def best(call: Callable[[], object], rounds: int, clock: Callable[[], float]) -> float:
    """Seconds of the fastest of so many calls, after one that is not timed."""
    call()
    times = []
    for _ in range(rounds):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)


def _product(path: Path) -> Path:
    """y = x @ a constant matrix."""
    import onnx_ir as ir

    x = ir.val("x", ir.DataType.FLOAT, [_SIDE, _SIDE])
    weight = ir.val("w", const_value=ir.tensor(np.full((_SIDE, _SIDE), 1e-3, dtype=np.float32), name="w"))
    node = ir.node("MatMul", [x, weight])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [y], nodes=[node], initializers=[weight], opset_imports={"": 20}, name="product")
    ir.save(ir.Model(graph, ir_version=10), path)
    return path
