"""Which tokens count: those that the mask of their own stream shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moeify.ir.model_graph import Batch
from moeify.measure.outputs import visible, visible_outputs

_IDS = torch.ones(1, 3, dtype=torch.int64)
_READ, _WRITTEN = torch.tensor([[1, 1, 0]]), torch.tensor([[1, 0, 0]])

#: caption, batch, the mask of what is read, the mask of the outputs
CASES: list[tuple[str, Batch, Tensor | None, Tensor | None]] = [
    ("a tuple", (_IDS,), None, None),
    ("no mask", {"input_ids": _IDS}, None, None),
    ("one stream", {"input_ids": _IDS, "attention_mask": _READ}, _READ, _READ),
    ("two streams", {"input_ids": _IDS, "attention_mask": _READ, "decoder_input_ids": _IDS}, _READ, None),
    (
        "two streams, two masks",
        {"attention_mask": _READ, "decoder_input_ids": _IDS, "decoder_attention_mask": _WRITTEN},
        _READ,
        _WRITTEN,
    ),
    ("a mask of numbers", {"input_ids": _IDS, "attention_mask": _READ.float()}, None, None),
]


@pytest.mark.parametrize(("batch", "read", "written"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_visible(batch: Batch, read: Tensor | None, written: Tensor | None) -> None:
    for found, expected in ((visible(batch), read), (visible_outputs(batch), written)):
        assert (found is None) == (expected is None)
        assert found is None or expected is None or torch.equal(found, expected.bool())
