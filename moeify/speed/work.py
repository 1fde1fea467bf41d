"""The work of a run: bytes of weights that have to be read, and operations with them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from moeify.ir.moe_config import MoEConfig
from moeify.layers.budget import moe_layers


@dataclass(frozen=True)
class Work:
    """weights: how many weights are read, each of them once. flops: of products with weights, a multiplication and an addition
    counted as two; the products of attention with its cache are left out."""

    weights: int = 0
    flops: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.weights + other.weights, self.flops + other.flops)


def layer_work(config: MoEConfig, chosen: Tensor) -> Work:
    """Of an MoE layer whose tokens chose their experts like that, bool [tokens, experts]: the rows of every expert that any
    token chose are read once; router, low-rank term and shared expert always run. Biases are left out, as in the active
    fraction; composed rows count as folded. With `smear` all rows are read and one merged expert a token runs.
    """
    sizes = torch.tensor(config.sizes, dtype=torch.int64)
    tokens, row = len(chosen), row_weights(config)
    read, worked = int(sizes[chosen.any(0).cpu()].sum()), int((chosen.cpu().sum(0) * sizes).sum())
    if config.smear:
        read, worked = int(sizes.sum()), tokens * config.sizes[0]
    router = 0 if config.router is None else config.router.parameters(config.hidden, config.experts)
    always = config.shared * row + router + config.rank * (config.hidden + config.output)
    return Work(read * row + always, 2 * (worked * row + tokens * always))


def dense_work(config: MoEConfig, tokens: int) -> Work:
    """Of the dense FFN that the layer was made of."""
    weights = config.dense_neurons * row_weights(config)
    return Work(weights, 2 * tokens * weights)


def row_weights(config: MoEConfig) -> int:
    """Weights of one neuron."""
    return config.hidden * (2 if config.gated else 1) + config.output


@dataclass
class WorkMeter:
    """The work of a converted model that runs, and of the dense model in its place."""

    converted: Work = Work()
    dense: Work = Work()


@contextmanager
def metered_work(model: nn.Module) -> Iterator[WorkMeter]:
    """Within the block the model's runs are metered: MoE layers by their choices, everything else by the parameters that
    operations take (a table of embeddings is looked up, not read). Use it without gradients."""
    layers, meter = moe_layers(model), WorkMeter()
    experts = {id(p) for layer in layers.values() for p in layer.parameters()}
    rest = _Rest([p for p in model.parameters() if id(p) not in experts])

    def before(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        config: Any = layer.config
        rest.inside += 1
        chosen = layer.route(args[0]).chosen  # type: ignore[operator]
        meter.converted += layer_work(config, chosen)
        meter.dense += dense_work(config, len(chosen))

    def after(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        rest.inside -= 1

    handles = [h for m in layers.values() for h in (m.register_forward_pre_hook(before), m.register_forward_hook(after))]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole layer could not be taken apart
    try:
        with rest:
            yield meter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    found = Work(sum(rest.read.values()), rest.flops)
    meter.converted, meter.dense = meter.converted + found, meter.dense + found


class _Rest(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Sees every operation, and which of the weights, or views of them, it takes. inside: how many MoE layers are running."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inside, self.flops = 0, 0
        self.read: dict[int, int] = {}
        self._weights = sorted(weights, key=Tensor.data_ptr)
        self._starts = [p.data_ptr() for p in self._weights]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if self.inside or packet is torch.ops.aten.embedding:
            return out
        found = [p for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) for p in self._weight(leaf)]
        self.read |= {p.data_ptr(): p.numel() for p in found}
        if found and packet in flop_registry:
            self.flops += int(flop_registry[packet](*args, **(kwargs or {}), out_val=out))
        return out

    def _weight(self, tensor: Tensor) -> list[nn.Parameter]:
        """The one that the tensor is, or is a view of; files that are mapped hold many in one storage."""
        at = bisect_right(self._starts, tensor.data_ptr()) - 1
        if at < 0 or tensor.data_ptr() >= self._starts[at] + self._weights[at].nbytes:
            return []
        return [self._weights[at]]
