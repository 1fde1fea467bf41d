"""How the copies of an upcycled layer are scaled (docs/upcycling.md), so that gates which sum to 1 give back the FFN."""

from __future__ import annotations

import math


def copy_factors(shards: int, shared: bool) -> tuple[float, float]:
    """(of the shared copy, of a routed copy): by what the output of a copy is multiplied.

    Beside a shared copy both count half; each of G shards counts G-fold (He et al. 2024, section 3).
    """
    half = 0.5 if shared else 1.0
    return half, half * shards


def row_factors(factor: float, gated: bool) -> dict[str, float]:
    """By what a copy's tensors are multiplied, by name, so that its output is `factor` times as large.

    Gated: up and down rows share the factor, the gate stays, for act(s z) is not s act(z). Two-matrix: down alone. The part of
    up is a power of two, so that a factor that is one loses nothing in any dtype.
    """
    of_up = 2.0 ** round(math.log2(factor) / 2) if gated else 1.0
    return {"up": of_up, "up_bias": of_up, "down": factor / of_up} if gated else {"down": factor}
