"""Where one matrix or bias of a dense FFN stands among the parameters of its host."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class WeightPlace:
    """A parameter of the host, or a run of its rows. A 1x1 convolution's kernel counts as its matrix.

    parameter: its path in the host. shape: of the neuron-major form, [neurons, hidden] (up, gate), [neurons, output] (down),
    [neurons] or [output]. rows: first and last + 1 along the neuron axis, after transposing; None: all. transposed: the host
    stores the transpose of the neuron-major form.
    """

    parameter: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def view(self, stored: Tensor) -> Tensor:
        """The neuron-major form of what the host stores; shares its memory."""
        value = stored.flatten(1) if stored.ndim > 2 else stored
        value = value.T if self.transposed else value
        return value if self.rows is None else value[self.rows[0] : self.rows[1]]
