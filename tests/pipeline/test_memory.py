"""How sparing a conversion is with memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest

from moeify.pipeline import memory
from moeify.pipeline.memory import frugality


@pytest.mark.parametrize(("weights", "peak"), [(100, 400), (100, 1), (1, 400)])
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
    weights: int, peak: int, machine: int | None, streamed: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = []

    def noted(name: str) -> Callable[[], nullcontext[None]]:
        def enter() -> nullcontext[None]:
            entered.append(name)
            return nullcontext()

        return enter

    with monkeypatch.context() as patch:
        for name in ("blocks_kept", "large_blocks_apart"):
            patch.setattr(memory, name, noted(name))
        patch.setattr(memory, "machine_memory", lambda: machine)
        with frugality(weights, peak, streamed=streamed):
            assert entered == ([] if wanted == "nothing" else [wanted])
