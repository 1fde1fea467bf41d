"""The experts of a layer gathered into the weights of one dense FFN: one strategy a file, in a closed table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from moeify.errors import UsageError, did_you_mean
from moeify.layers.dense_ffn.concatenate import Concatenate
from moeify.layers.dense_ffn.mean import Mean
from moeify.layers.dense_ffn.strategy import DenseWeights, Gathering
from moeify.layers.dense_ffn.svd import SVD

__all__ = ["GATHERINGS", "SVD", "Concatenate", "DenseWeights", "Gathering", "Mean", "gathering"]

#: Name -> strategy with its defaults.
GATHERINGS: Mapping[str, Gathering] = MappingProxyType({each.name: each for each in (Concatenate(), Mean(), SVD())})


def gathering(by: str | Gathering) -> Gathering:
    """The strategy of that name. Raises UsageError for a name that is not in the table."""
    if not isinstance(by, str):
        return by
    if by not in GATHERINGS:
        raise UsageError(f"experts cannot be gathered by {by!r}: {did_you_mean(by, GATHERINGS)}")
    return GATHERINGS[by]
