"""The command line: argv in, exit code out. It calls `moeify.api` and shows what comes back; it decides nothing.

Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command (default: sys.argv[1:]) and returns its exit code; never raises."""
    from moeify.cli.run import run

    return run(argv)
