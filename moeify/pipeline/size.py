"""Sizes in bytes as people write them."""

from __future__ import annotations

import re

from moeify.errors import UsageError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(value: int | str, option: str) -> int:
    """Bytes of 1048576, "512MiB", "1.5 GB". Raises UsageError, naming the option, for anything else or for no size at all."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    if match and match[2].upper() in _UNITS and (size := int(float(match[1]) * _UNITS[match[2].upper()])) > 0:
        return size
    raise UsageError(f"{option} is {value!r}: give a positive number of bytes, or a size such as 512MiB or 1GB")
