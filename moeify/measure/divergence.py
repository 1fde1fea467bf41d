"""How far one model's outputs are from another's on the same batches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moeify.errors import ConversionError, InputError
from moeify.ir.model_graph import Batch
from moeify.measure.outputs import chunks, evaluating, finite, main_output, run, visible_outputs


@dataclass(frozen=True)
class Divergence:
    """Dense model d against model m on the output of that name; means run over vectors: tokens, or rows of the batch.

    kl: mean KL(softmax(d) || softmax(m)) in nats. agreement: share of vectors with the same largest entry. Both are None
    where the output is no logits. relative_error: ||d - m|| / ||d|| over everything. largest_difference: max |d - m| /
    max |d|. cosine: mean cosine of the two vectors.
    """

    output: str
    vectors: int
    kl: float | None
    agreement: float | None
    relative_error: float
    largest_difference: float
    cosine: float


@dataclass
class DivergenceSum:
    """Adds up batches; holds a handful of numbers.

    logits: is the output one of unnormalised log-probabilities, so that KL and agreement mean something? An output of that
    name always is.
    """

    logits: bool = False
    output: str = ""
    vectors: int = 0
    kl: float = 0.0
    agreeing: int = 0
    cosine: float = 0.0
    squared_difference: float = 0.0
    squared: float = 0.0
    largest_difference: float = 0.0
    largest: float = 0.0

    def add(self, dense: Tensor, other: Tensor, name: str, shown: Tensor | None = None) -> None:
        """Outputs [..., width] of the same batch; shown: bool over the leading dims, vectors to leave out are False.

        Raises ConversionError for unequal shapes and for values that are not finite.
        """
        if dense.shape != other.shape:
            raise ConversionError(f"the {name} of the two models differ in shape: {list(dense.shape)}, {list(other.shape)}")
        self.output, self.logits = name, self.logits or name == "logits"
        first = _vectors(finite(dense, name, "dense"))
        second = _vectors(finite(other, name, "converted").to(dense.device))
        if shown is not None and shown.shape == dense.shape[:-1]:
            kept = shown.flatten().to(dense.device)
            first, second = first[kept], second[kept]
        for d, m in zip(chunks(first), chunks(second)):
            self._add(d.double(), m.double())

    def _add(self, d: Tensor, m: Tensor) -> None:
        """[vectors, width] float64."""
        if not d.numel():
            return
        self.vectors += len(d)
        self.squared_difference += float((d - m).square().sum())
        self.squared += float(d.square().sum())
        self.largest_difference = max(self.largest_difference, float((d - m).abs().max()))
        self.largest = max(self.largest, float(d.abs().max()))
        self.cosine += float(_cosines(d, m).sum())
        if self.logits:
            log_d, log_m = d.log_softmax(-1), m.log_softmax(-1)
            self.kl += float((log_d.exp() * (log_d - log_m)).sum())
            self.agreeing += int((d.argmax(-1) == m.argmax(-1)).sum())

    def result(self) -> Divergence:
        """Raises InputError where nothing was added."""
        if not self.vectors:
            raise InputError("the data holds nothing to compare the models on")
        return Divergence(
            self.output,
            self.vectors,
            max(self.kl / self.vectors, 0.0) if self.logits else None,
            self.agreeing / self.vectors if self.logits else None,
            _ratio(math.sqrt(self.squared_difference), math.sqrt(self.squared)),
            _ratio(self.largest_difference, self.largest),
            self.cosine / self.vectors,
        )


def divergence(dense: nn.Module, other: nn.Module, batches: Iterable[Batch], logits: bool = False) -> Divergence:
    """How far `other` is from `dense` on the batches, by their main outputs; tokens under the attention mask are left out.

    Raises InputError for outputs without a tensor, ConversionError for unequal shapes and values that are not finite.
    """
    total = DivergenceSum(logits)
    with evaluating(dense, other):
        for batch in batches:
            name, first = main_output(run(dense, batch))
            _, second = main_output(run(other, batch))
            total.add(first, second, name, visible_outputs(batch))
    return total.result()


def _vectors(output: Tensor) -> Tensor:
    """[vectors, width]: the last dim of outputs with up to three dims, else everything of one row."""
    if output.ndim < 2:
        return output.reshape(-1, 1)
    return output.flatten(0, -2) if output.ndim < 4 else output.flatten(1)


def _cosines(d: Tensor, m: Tensor) -> Tensor:
    """[vectors]; 1 for two vectors of zeros, 0 where one of them is."""
    norms = d.norm(dim=-1) * m.norm(dim=-1)
    return torch.where(norms > 0, (d * m).sum(-1) / norms.where(norms > 0, 1.0), (d == m).all(-1).double())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else (math.inf if part else 0.0)
