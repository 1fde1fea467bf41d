"""Documents as rows of their own, for models that read one text at a time: sentence encoders, classifiers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from moeify.data.text_encoder import TextEncoder
from moeify.data.text_inputs import TextInputs
from moeify.ir.model_graph import Batch

#: Rows are as long as a multiple of this: so texts of about one length are of one shape.
_STEP = 16


def reads_documents(encoder: TextEncoder, inputs: TextInputs) -> bool:
    """Is a text a row of this model? Then its tokenizer puts special tokens before and behind one, and the model can be told
    where a row that is shorter than others ends."""
    return bool(encoder.prefix and encoder.suffix) and inputs.masked


def document_batches(
    encoder: TextEncoder, documents: Iterable[str], window: int, batch: int, tokens: int | None, inputs: TextInputs
) -> Iterator[Batch]:
    """Batches of documents, of which those longer than a window are several rows; `tokens` of text at most.

    A batch has rows of about one length, as many as take the room of `batch` full windows, filled up behind the mask. So texts
    come in the order in which batches of their length are full.
    """
    around = len(encoder.prefix) + len(encoder.suffix)
    longest = encoder.content(window) + around
    begun: dict[int, list[list[int]]] = {}
    for text in _runs(encoder, documents, longest - around, tokens):
        width = min(-(-(len(text) + around) // _STEP) * _STEP, longest)
        rows = begun.setdefault(width, [])
        rows.append([*encoder.prefix, *text, *encoder.suffix])
        if (len(rows) + 1) * width > batch * longest:
            yield _filled_up(begun.pop(width), width, encoder, inputs)
    for width, rows in begun.items():
        yield _filled_up(rows, width, encoder, inputs)


def _runs(encoder: TextEncoder, documents: Iterable[str], size: int, tokens: int | None) -> Iterator[list[int]]:
    """Ids of the documents, cut to runs of that size."""
    left = tokens
    for document in documents:
        ids = list(encoder.ids([document], documents=False))[:left]
        yield from (ids[start : start + size] for start in range(0, len(ids), size))
        if left is not None:
            left -= len(ids)
            if not left:
                return


def _filled_up(rows: list[list[int]], width: int, encoder: TextEncoder, inputs: TextInputs) -> Batch:
    ids = torch.full((len(rows), width), encoder.padding, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return inputs(ids, mask)
