"""Training one MoE layer by itself, against a loss on held-out data: what every way of distilling block by block does."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moeify.errors import ConversionError, UsageError
from moeify.layers.moe_layer import MoELayer

#: Makes the optimizer of one block from the parameters that it trains.
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with a learning rate of 1e-3 and no weight decay, which pulls copies of a parent away from it."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)


@dataclass(frozen=True)
class BlockReport:
    """One block. before, after: the loss on the held-out part. steps: that were made; kept: after which of them the weights
    are those that stay (0: as they were). resumed: taken over from an earlier run."""

    path: str
    before: float
    after: float
    steps: int
    kept: int
    resumed: bool = False


@dataclass(frozen=True)
class Schedule:
    """steps: at most, for each block. checks: how often the held-out loss is looked at in them. patience: so many checks in a
    row without a better one end the block. optimizer: makes that of a block."""

    steps: int = 200
    checks: int = 10
    patience: int = 2
    optimizer: MakeOptimizer = adamw

    def __post_init__(self) -> None:
        for name in ("steps", "checks", "patience"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"{name} is {value}: choose 1 or more")

    def train(
        self, path: str, layer: MoELayer, loss: Callable[[int], Tensor], held_out: Callable[[], float], seed: int
    ) -> BlockReport:
        """Trains the layer's parameters that require a gradient, and no others; it ends with the weights of the best check.

        loss: of the step with that number, with a gradient. held_out: the loss in eval mode. seed: of what the layer draws in
        training (dropout). Raises ConversionError where a loss is not finite; the layer has the best weights so far then.
        """
        parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        optimizer, every = self.optimizer(parameters), max(1, self.steps // self.checks)
        best = before = _finite(held_out(), path, 0)
        kept, state, worse, step = 0, _state(layer), 0, 0
        try:
            with _drawing(f"{seed}/{path}"):
                while step < self.steps and worse < self.patience:
                    self._step(path, layer, parameters, optimizer, loss, step)
                    step += 1
                    if step % every and step < self.steps:
                        continue
                    now = _finite(held_out(), path, step)
                    worse = 0 if now < best else worse + 1
                    if now < best:
                        best, kept, state = now, step, _state(layer)
        finally:
            layer.load_state_dict(state)
        return BlockReport(path, before, best, step, kept)

    def _step(
        self,
        path: str,
        layer: MoELayer,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        loss: Callable[[int], Tensor],
        step: int,
    ) -> None:
        layer.train()
        try:
            with torch.enable_grad():
                value = loss(step)
            _finite(float(value.detach()), path, step)
            torch.autograd.backward(value, inputs=parameters)
            optimizer.step()
        finally:
            layer.eval()
            optimizer.zero_grad()


def generator_for(purpose: str) -> torch.Generator:
    """One that depends on those words alone."""
    digest = hashlib.sha256(purpose.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def shuffled(count: int, size: int, purpose: str) -> Callable[[int], Tensor]:
    """Step -> `size` indices below `count` (all of them where there are fewer), epoch after epoch in a new order."""
    generator, order = generator_for(purpose), torch.empty(0, dtype=torch.int64)
    size = min(size, count)

    def indices(step: int) -> Tensor:
        nonlocal order
        if len(order) < size:
            order = torch.cat((order, torch.randperm(count, generator=generator)))
        drawn, order = order[:size], order[size:]
        return drawn

    return indices


def held_out_count(count: int, share: float) -> int:
    """How many of so many are held out: their share, one at least. Raises UsageError for a share that is none."""
    if not 0 < share < 1:
        raise UsageError(f"held_out is {share}: choose a share between 0 and 1, such as 0.1")
    return max(1, round(count * share))


@contextmanager
def _drawing(purpose: str) -> Iterator[None]:
    """Within, what draws from torch's own generators (dropout) draws by those words; afterwards they are as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(generator_for(purpose).initial_seed() % 2**63)
        yield


def _state(layer: MoELayer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in layer.state_dict().items()}


def _finite(value: float, path: str, step: int) -> float:
    if not math.isfinite(value):
        raise ConversionError(f"{path}: the loss is {value} after {step} steps: choose a lower learning rate")
    return value
