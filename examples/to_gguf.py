"""A stock checkpoint (`moeify export --to hf`) as a file for llama.cpp, by llama.cpp's own converter.

    python examples/to_gguf.py my-stock-moe/ my-moe.gguf [--type f32|f16|bf16|q8_0]

The converter lies in the source archive of llama-cpp-python: pip fetches it once, nothing of it is built. The cache is
~/.cache/moeify, or the folder that MOEIFY_CACHE names.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from moeify.errors import InputError, MoeifyError
from package_files import Package, unpacked

_INSIDE = "llama_cpp_python-0.3.36/vendor/llama.cpp/"
LLAMA_CPP = Package(
    "llama-cpp-python",
    "0.3.36",
    "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    _INSIDE + "convert_hf_to_gguf.py",
    "source",
    also=(_INSIDE + "conversion/", _INSIDE + "gguf-py/gguf/", _INSIDE + "LICENSE"),
)
TYPES = ("f32", "f16", "bf16", "q8_0")


def converter() -> Path:
    """The script, beside the modules that it reads."""
    return unpacked(LLAMA_CPP) / LLAMA_CPP.inside


def to_gguf(stock: Path, output: Path, kind: str = "f32") -> None:
    """kind: the number type of matrices. Raises InputError with the converter's last line for what it refuses."""
    command = [sys.executable, str(converter()), str(stock), "--outfile", str(output), "--outtype", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{stock}: llama.cpp's converter refuses it: {last}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stock", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--type", choices=TYPES, default="f32")
    given = parser.parse_args()
    try:
        to_gguf(given.stock, given.output, given.type)
    except MoeifyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
