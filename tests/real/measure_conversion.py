"""Converts a model in a process of its own and prints seconds (of the wall and of the processor) and peak resident bytes above
the process after imports, as JSON.

python measure_conversion.py MODEL OUT [--text DATA --tokens 8192] [--recipe emoe] [--top-k 4] [--dtype fp32]
    [--set PASS.OPTION=VALUE] [--resume] [--sparing]

--sparing: as on a machine that has no memory to spare for the model.
"""

from __future__ import annotations

import importlib
import json
import resource
import time
from argparse import ArgumentParser
from pathlib import Path

import moeify
from moeify.pipeline import memory

#: What a conversion imports; loaded first, so that their own memory is not counted.
IMPORTED = ("torch", "torch.export", "transformers", "accelerate", "safetensors.torch", "moeify.api", "moeify_passes")


def peak() -> int:
    """The largest resident set so far, in bytes. Not getrusage's: that one also counts what the parent process held."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def processor() -> float:
    """Seconds of the processor so far: what else runs on the machine counts little."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("output")
    parser.add_argument("--text")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--recipe", default="emoe")
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--sparing", action="store_true")
    options = parser.parse_args()
    for name in IMPORTED:
        importlib.import_module(name)
    if options.sparing:
        memory.machine_memory = lambda: None
    before, started, used = peak(), time.monotonic(), processor()
    data = {} if options.text is None else {"calibrate": options.text, "tokens": options.tokens}
    done = moeify.convert(
        options.model, options.output, recipe=options.recipe, experts=16, top_k=options.top_k, dtype=options.dtype, force=True,
        settings=dict(given.split("=", 1) for given in options.set), resume=options.resume, **data,
    )  # fmt: skip
    found = {"seconds": time.monotonic() - started, "processor": processor() - used, "bytes": peak() - before}
    tokens = done.report.layers[0].measured.get("calibration_tokens")
    print(json.dumps({**found, "tokens": tokens, "resumed": done.resumed, "by_pass": done.report.seconds}))


if __name__ == "__main__":
    main()
