from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeify.errors import UsageError
from moeify.pipeline.size import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [(1, 1), ("17", 17), ("3 B", 3), ("2KB", 2000), ("2 KiB", 2048), ("1.5GB", 1_500_000_000), ("512mib", 512 * 2**20)],
)
def test_sizes_are_read(text: int | str, size: int) -> None:
    assert parse_size(text, "memory") == size


@given(st.integers(1, 10**9))
def test_a_size_in_bytes_is_itself(size: int) -> None:
    assert parse_size(size, "memory") == parse_size(str(size), "memory") == size


@pytest.mark.parametrize("value", [0, -1, True, 1.5, None, "", "0", "0.1 B", "-3MB", "1TB", "MiB", "1 2", "nan", "1e9"])
def test_what_is_no_size_is_refused_by_name_and_value(value: Any) -> None:
    with pytest.raises(UsageError) as error:
        parse_size(value, "x.memory")
    expected = f"x.memory is {value!r}: give a positive number of bytes, or a size such as 512MiB or 1GB"
    assert str(error.value) == expected
