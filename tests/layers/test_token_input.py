"""Ids and positions as a model's call tells them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layers.stochastic_layers import HIDDEN, TokenModel, router_of, stochastic_layer
from moeify.layers.model_hooks import watcher_of
from moeify.layers.token_input import TokenInput

IDS = torch.tensor([[7, 8, 9], [4, 5, 6]])
GRID = torch.arange(3).expand(2, 3)


class Seeing(nn.Module):
    """Keeps what the hook saw at a hidden tensor of a given shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape
        self.found: tuple[Tensor, Tensor] | None = None

    def forward(self, *args: Any, fail: bool = False, **kwargs: Any) -> int:
        if fail:
            raise ValueError("broken")
        self.found = watcher_of(self, TokenInput).at(torch.zeros(self.shape))
        return 0


class Cache:
    def get_seq_length(self) -> int:
        return 10


def seen(*args: Any, shape: tuple[int, ...] = (2, 3, HIDDEN), **kwargs: Any) -> tuple[Tensor, Tensor]:
    model = Seeing(*shape)
    watcher_of(model, TokenInput)
    model(*args, **kwargs)
    assert model.found is not None
    return model.found


LEFT_PADDED = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
#: caption, arguments, the positions that are expected
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], Tensor]] = [
    ("a keyword", (), {"input_ids": IDS}, GRID),
    ("a keyword among others", (), {"mask": torch.ones(2, 3).long(), "input_ids": IDS}, GRID),
    ("a positional argument", (IDS,), {}, GRID),
    ("behind floats", (torch.zeros(2, 3), IDS, IDS + 1), {}, GRID),
    ("int32", (IDS.int(),), {}, GRID),
    ("positions of its own", (), {"input_ids": IDS, "position_ids": GRID + 4}, GRID + 4),
    ("positions for every row", (), {"input_ids": IDS, "position_ids": GRID[:1] + 4}, GRID + 4),
    ("a mask with the past", (), {"input_ids": IDS, "attention_mask": torch.ones(2, 5)}, GRID + 2),
    ("left padding", (), {"input_ids": IDS, "attention_mask": LEFT_PADDED}, torch.tensor([[0, 1, 2], [2, 3, 4]])),
    ("a cache", (), {"input_ids": IDS, "past_key_values": Cache()}, GRID + 10),
]


@pytest.mark.parametrize(("args", "kwargs", "positions"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_ids_and_positions(args: tuple[Any, ...], kwargs: dict[str, Any], positions: Tensor) -> None:
    ids, found = seen(*args, **kwargs)
    assert torch.equal(ids, IDS)
    assert torch.equal(found, positions)


def test_tokens_that_were_flattened_are_the_same_tokens() -> None:
    ids, _ = seen(IDS, shape=(6, HIDDEN))
    assert torch.equal(ids, IDS)


def test_of_two_streams_the_one_of_the_right_shape_is_taken() -> None:
    other = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    for shape, expected in (((2, 4, HIDDEN), other), ((2, 3, HIDDEN), IDS)):
        assert torch.equal(seen(input_ids=IDS, decoder_input_ids=other, shape=shape)[0], expected)


@pytest.mark.parametrize("args", [(), (torch.zeros(2, 3),), (IDS[0],)], ids=["nothing", "floats", "a vector"])
def test_without_ids_it_is_sequence_and_place(args: tuple[Any, ...]) -> None:
    index, place = seen(*args)
    assert index.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert torch.equal(place, GRID)


def test_what_was_seen_is_forgotten_when_the_call_ends() -> None:
    model = Seeing(2, 3, HIDDEN)
    tokens = watcher_of(model, TokenInput)
    model(IDS)
    assert tokens.at(torch.zeros(2, 3, HIDDEN))[0].tolist() == [[0, 0, 0], [1, 1, 1]]
    with pytest.raises(ValueError, match="broken"):
        model(IDS, fail=True)
    assert tokens.at(torch.zeros(2, 3, HIDDEN))[0].tolist() == [[0, 0, 0], [1, 1, 1]]


def test_a_model_has_one() -> None:
    model = Seeing(1)
    assert watcher_of(model, TokenInput) is watcher_of(model, TokenInput)
    assert len(model._forward_pre_hooks) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"])
def test_a_copied_model_sees_for_itself(copied: Any) -> None:
    model = TokenModel(stochastic_layer(8, inference="fixed"))
    other = copied(model)
    assert watcher_of(other, TokenInput) is router_of(other.moe).tokens
    assert watcher_of(other, TokenInput) is not watcher_of(model, TokenInput)
    assert torch.equal(other(IDS)["scores"], model(IDS)["scores"])


def test_the_same_text_takes_the_same_experts_in_any_batch_and_step() -> None:
    model = TokenModel(stochastic_layer(8, inference="fixed"))
    whole = model(IDS)["scores"]
    assert torch.equal(model(IDS[1:])["scores"], whole[1:])
    step = model(IDS[:, 2:], attention_mask=torch.ones(2, 3))
    assert torch.equal(step["scores"], whole[:, 2:])
