"""Which lowerings there are, and what can be said of them before a model is read."""

from __future__ import annotations

from moeify.errors import UsageError
from moeify.runtime.native import library

LOWERINGS = ("auto", "portable", "standard", "contrib", "native")

#: Tokens of a call that files are made for unless told otherwise: a step of generation, and a short text.
TOKENS = (1, 128)


def check_lowering(lowering: str, tokens: tuple[int, ...] = TOKENS) -> None:
    """Raises UsageError for an unknown name, no or impossible numbers of tokens, `native` where the library is missing."""
    if lowering not in LOWERINGS:
        raise UsageError(f"lowering is {lowering!r}: choose one of {', '.join(LOWERINGS)}")
    if not tokens or min(tokens) < 1:
        raise UsageError(f"tokens is {', '.join(map(str, tokens)) or 'empty'}: give numbers from 1, such as 1,128")
    if lowering == "native" and library() is None:
        raise UsageError(
            "lowering is 'native', but the native operator library was not built, so that the file could not be checked: "
            "install a C++ compiler (g++ or clang++) and moeify again, or use portable"
        )
