"""Inputs that nobody gave are told by the first layer, where it tells them, and by what then runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from moeify.errors import InputError
from moeify.frontend.infer_example import infer_example
from moeify.frontend.load_model import load_model


def _encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


def _small_images() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(2 * 24 * 24, 3))


class Positions(nn.Module):
    """Token and position embeddings; the second is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(8, 4)
        self.tokens = nn.Embedding(100, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return x


class Patches(nn.Module):
    """A vision transformer's first step, for images of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, 49, 4))
        self.patches = nn.Conv2d(3, 4, 32, stride=32)

    def forward(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.patches(pixels).flatten(2).mT + self.positions
        return x


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z: Tensor = self.up(x) + y
        return z


class Looked(nn.Module):
    """Its input is not what its first layer gets."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(x.abs() + 1)
        return y


class Optional(Looked):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y: Tensor = self.up(x)
        return y


#: caption, module, shape and dtype of what is assumed (None: nothing is)
CASES: list[tuple[str, Callable[[], nn.Module], tuple[list[int], torch.dtype] | None]] = [
    ("linear", lambda: nn.Sequential(nn.Linear(8, 2)), ([2, 8], torch.float32)),
    ("linear behind a flatten", lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), ([2, 8], torch.float32)),
    ("norm first", lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 2)), ([2, 8], torch.float32)),
    ("an encoder", lambda: _encoder(False), ([2, 16, 8], torch.float32)),
    ("an encoder, norm first", lambda: _encoder(True), ([2, 16, 8], torch.float32)),
    ("recurrent", lambda: nn.GRU(8, 4, batch_first=True), ([2, 16, 8], torch.float32)),
    ("embedding", lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)), ([2, 16], torch.int64)),
    ("embedding with positions for 8 tokens", Positions, ([2, 8], torch.int64)),
    ("any image", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)), ([2, 3, 32, 32], torch.float32)),
    ("images of 28 pixels", _small_images, ([2, 1, 28, 28], torch.float32)),
    ("images of 224 pixels", Patches, ([2, 3, 224, 224], torch.float32)),
    ("a signal", lambda: nn.Sequential(nn.Conv1d(2, 4, 3)), ([2, 2, 64], torch.float32)),
    ("a volume", lambda: nn.Sequential(nn.Conv3d(1, 2, 3)), ([2, 1, 16, 16, 16], torch.float32)),
    ("half precision", lambda: nn.Sequential(nn.Linear(8, 2)).to(torch.bfloat16), ([2, 8], torch.bfloat16)),
    ("a second input that may be left out", Optional, ([2, 4], torch.float32)),
    ("two inputs", Pair, None),
    ("a decoder", lambda: nn.TransformerDecoderLayer(8, 2, 16), None),
    ("an input that is changed before the first layer", Looked, None),
    ("no layer that tells", lambda: nn.Sequential(nn.ReLU()), None),
    ("layers that do not fit", lambda: nn.Sequential(nn.Linear(8, 2), nn.Linear(3, 2)), None),
]  # fmt: skip


@pytest.mark.parametrize(("make", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_the_first_layer_tells(make: Callable[[], nn.Module], expected: tuple[list[int], torch.dtype] | None) -> None:
    model = make().eval()
    before = torch.get_rng_state()
    found = infer_example(model)
    assert (None if found is None else (list(found[0].shape), found[0].dtype)) == expected
    assert torch.equal(before, torch.get_rng_state())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_was_assumed_is_said() -> None:
    assert load_model(nn.Sequential(nn.Linear(8, 2))).notes == (
        "example inputs were assumed: float32 [2, 8], as 0 (Linear) takes them",
    )


def test_where_nothing_is_told_the_message_asks_for_an_example() -> None:
    with pytest.raises(InputError, match=r"the inputs of Pair are not known: .*--example"):
        load_model(Pair())
