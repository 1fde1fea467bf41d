"""Which of the layers found are to be converted."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from moeify.errors import UsageError
from moeify.ir.feed_forward import FeedForward


def check_layers(layers: str) -> None:
    """Raises UsageError for a selection that cannot be read."""
    for term in _terms(layers):
        if not term:
            raise UsageError(f"find-feed-forward.layers is {layers!r}: give path patterns, last-half or every:N, with commas")
        if term.startswith("every:") and not (term[6:].isdecimal() and int(term[6:]) > 0):
            raise UsageError(f"find-feed-forward.layers has {term!r}: give a whole number from 1, such as every:2")


def select_layers(sites: Sequence[FeedForward], layers: str) -> tuple[FeedForward, ...]:
    """The sites that any of the comma-separated terms picks, in execution order.

    A term is a pattern for site paths ("*.mlp"), "last-half" (rounded up), or "every:N": the N-th, the 2N-th and so on.
    Raises UsageError where a selection picks none of the sites there are.
    """
    picked = {i for term in _terms(layers) for i in _indices(sites, term)}
    if sites and not picked:
        some = ", ".join(site.path for site in sites[:3]) + (", ..." if len(sites) > 3 else "")
        raise UsageError(f"layers {layers!r} picks none of the {len(sites)} feed-forward networks: their paths are {some}")
    return tuple(site for i, site in enumerate(sites) if i in picked)


def _terms(layers: str) -> list[str]:
    return [term.strip() for term in layers.split(",")]


def _indices(sites: Sequence[FeedForward], term: str) -> Sequence[int]:
    if term == "last-half":
        return range(len(sites) // 2, len(sites))
    if term.startswith("every:"):
        step = int(term[6:])
        return range(step - 1, len(sites), step)
    return [i for i, site in enumerate(sites) if fnmatchcase(site.path, term)]
