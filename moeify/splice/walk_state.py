"""A walk put down between two of its steps, to be taken up elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from moeify.splice.spill import Values
from moeify.splice.token_masks import TokenMasks


@dataclass(frozen=True, eq=False)
class WalkState:
    """Where a walk stands on one batch: all that is alive there, in front of the node at `position`. Plain data."""

    values: Values
    position: int
    masks: TokenMasks
