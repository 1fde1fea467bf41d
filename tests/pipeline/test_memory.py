"""How sparing a conversion is with memory."""

from __future__ import annotations

from contextlib import nullcontext
from unittest.mock import patch

import pytest

from moeify.pipeline import memory
from moeify.pipeline.memory import frugality


@pytest.mark.parametrize(
    ("machine", "streamed", "wanted"),
    [
        (1600, True, "blocks_kept"),
        (1600, False, "blocks_kept"),
        (1599, True, "large_blocks_apart"),
        (1599, False, "nothing"),
        (None, True, "large_blocks_apart"),
    ],
)
def test_memory_is_kept_where_there_is_plenty_and_given_back_where_weights_are_streamed(
    machine: int | None, streamed: bool, wanted: str
) -> None:
    entered = []

    def enter(name: str) -> nullcontext[None]:
        entered.append(name)
        return nullcontext()

    names = ("blocks_kept", "large_blocks_apart")
    with (
        patch.multiple(memory, **{name: lambda name=name: enter(name) for name in names}, machine_memory=lambda: machine),
        frugality(100, streamed=streamed),
    ):
        assert entered == ([] if wanted == "nothing" else [wanted])
