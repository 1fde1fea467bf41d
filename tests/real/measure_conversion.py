"""Converts a model in a process of its own and prints seconds (of the wall and of the processor) and peak resident bytes above
the process after imports, as JSON.

python measure_conversion.py MODEL TEXT OUT [RECIPE]
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from pathlib import Path

import moeify

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


def main(model: str, text: str, output: str, recipe: str = "emoe", top_k: str = "4") -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    before, started, used = peak(), time.monotonic(), processor()
    done = moeify.convert(model, output, recipe=recipe, experts=16, top_k=int(top_k), calibrate=text, tokens=8192, force=True)
    tokens = done.report.layers[0].measured["calibration_tokens"]
    found = {"seconds": time.monotonic() - started, "processor": processor() - used, "bytes": peak() - before, "tokens": tokens}
    print(json.dumps({**found, "by_pass": done.report.seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
