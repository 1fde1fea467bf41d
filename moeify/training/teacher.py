"""What the dense model says to the batches of an alignment: it is asked once, and learned from whenever one comes again."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from moeify.ir.model_graph import Batch
from moeify.training.likely_divergence import likely_divergence
from moeify.training.output_distance import counted_vectors, relative_errors, same_shape
from moeify.training.strips import log_totals

#: Next tokens that are told apart, the likeliest; all others count as one.
LIKELIEST = 64
#: Bytes of answers that are kept; about batches beyond it is asked again.
_MEMORY = 1 << 30


@dataclass(frozen=True, eq=False)
class Answer:
    """The dense model's main output for the vectors (tokens) of a batch that count.

    name, width: of the output. values: where it is called logits, the logarithms of the probabilities of `ids` [vectors,
    likeliest]; else the vectors themselves [vectors, width], and ids None.
    """

    name: str
    width: int
    values: Tensor
    ids: Tensor | None

    @property
    def bytes(self) -> int:
        return self.values.nbytes + (0 if self.ids is None else self.ids.nbytes)

    def distance(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar with a gradient, the mean over vectors: KL(dense || model) in nats between the probabilities of the
        likeliest tokens and of all others together; or |dense - model|^2 / |dense|^2.

        Raises ConversionError where the outputs differ in shape, InputError where the model fails.
        """
        _, found = counted_vectors(model, batch)
        same_shape(self.name, (len(self.values), self.width), found.shape)
        if self.ids is None:
            return relative_errors(self.values, found.float()).mean()
        return likely_divergence(found, self.values, self.ids)


@dataclass(eq=False)
class Teacher:
    """The dense model's answers, by the numbers of batches."""

    dense: nn.Module
    _kept: dict[int, Answer] = field(default_factory=dict)
    _bytes: int = 0

    def answer(self, number: int, batch: Batch) -> Answer:
        """To this batch. Raises InputError where the dense model fails."""
        if number in self._kept:
            return self._kept[number]
        answer = _asked(self.dense, batch)
        if self._bytes + answer.bytes <= _MEMORY:
            self._kept[number] = answer
            self._bytes += answer.bytes
        return answer


@torch.no_grad()
def _asked(dense: nn.Module, batch: Batch) -> Answer:
    name, said = counted_vectors(dense, batch)
    if name != "logits":
        return Answer(name, said.shape[-1], said.float(), None)
    logs, ids = said.topk(min(LIKELIEST, said.shape[-1]), -1)
    return Answer(name, said.shape[-1], logs.float() - log_totals(said)[:, None], ids.int())
