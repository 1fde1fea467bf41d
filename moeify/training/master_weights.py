"""Float32 weights that are trained for a model of fewer bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MasterWeights:
    """Of parameters in half precision a float32 copy is trained and they have its rounding: a step of an optimizer is smaller
    than the distance of two such numbers (Micikevicius et al. 2018, Mixed Precision Training, section 3.1).

    parameters: of the model. masters: what an optimizer is given, in the same order; one that has enough bits is its own.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.masters = [nn.Parameter(p.detach().float()) if p.dtype.itemsize < 4 else p for p in self.parameters]
        self._pairs = [(p, master) for p, master in zip(self.parameters, self.masters) if master is not p]

    def take_gradients(self) -> None:
        """After backward: gradients of the model become the masters'."""
        for p, master in self._pairs:
            master.grad, p.grad = None if p.grad is None else p.grad.float(), None

    @torch.no_grad()
    def give_back(self) -> None:
        """The model gets what the masters are now, rounded to nearest."""
        for p, master in self._pairs:
            p.copy_(master)

    @torch.no_grad()
    def set(self, values: Sequence[Tensor]) -> None:
        """Masters and model."""
        for master, value in zip(self.masters, values, strict=True):
            master.copy_(value)
        self.give_back()
