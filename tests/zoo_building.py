"""How models of the zoo are built: seeded, small, with example inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoo_rows import VOCABULARY, Site


@dataclass(frozen=True)
class Zoo:
    """A model in eval mode, an example batch, the sites in execution order, how each is to be rewritten."""

    model: nn.Module
    example: tuple[Any, ...] | dict[str, Any]
    sites: list[Site] = field(default_factory=list)
    way: str = ""

    def run(self, batch: tuple[Any, ...] | dict[str, Any] | None = None) -> Any:
        """The model's own output for the batch (default: the example), without gradients."""
        batch = self.example if batch is None else batch
        with torch.no_grad():
            return self.model(**batch) if isinstance(batch, dict) else self.model(*batch)


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The module with every parameter moved by a seeded normal draw, so that no bias is zero and no norm is plain."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def ids(batch: int = 2, tokens: int = 7, seed: int = 1) -> Tensor:
    """Token ids [batch, tokens], none of them a special one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, tokens), generator=generator)


def values(*shape: int, seed: int = 1) -> Tensor:
    """Normal values of that shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
