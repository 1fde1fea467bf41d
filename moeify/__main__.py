"""`python -m moeify`: the same as the command `moeify`."""

from __future__ import annotations

import sys

from moeify.cli import main

if __name__ == "__main__":
    sys.exit(main())
