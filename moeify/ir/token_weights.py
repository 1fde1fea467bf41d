"""How much each token counts where outputs are compared or fitted."""

from __future__ import annotations

import torch
from torch import Tensor

#: Squared norms of outputs above so many times the median are damped.
ORDINARY = 10.0


def damped(squares: Tensor, scale: float | None = None) -> Tensor:
    """How much each token counts, [tokens]: 1 / (1 + |y|^2 / scale), at a scale of ten times the median of |y|^2.

    squares: |y|^2 of the dense output without its bias, [tokens]. In decoders the first token of a text has outputs hundreds of
    times as large as others in some layers ("massive activations", Sun et al. 2024, section 2), and a plain sum of squares
    would be about it alone. What follows a layer is normalised, so that an error counts by its size against the token's own.
    """
    scale = ORDINARY * float(squares.median()) if scale is None else scale
    return torch.ones_like(squares) if scale <= 0 else 1 / (1 + squares / scale)
