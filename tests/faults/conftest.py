"""The command line, as in tests/cli."""

from __future__ import annotations

from cli.conftest import kept, moeify

__all__ = ["kept", "moeify"]
