"""Which tokens of a call count, by the masks that the model was called with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moeify.layers.model_hooks import watcher_of
from moeify.layers.training_door import TrainingDoor
from moeify.training.settings import auxiliary_loss, set_training
from training.trained_models import HIDDEN, moe_layer, values


class Streams(nn.Module):
    """An encoder and a decoder, each one MoE layer. Gives both outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(moe_layer(0))
        self.decoder = nn.Sequential(moe_layer(1))

    def forward(
        self, x: Tensor, y: Tensor, attention_mask: Tensor | None = None, decoder_attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.encoder(x), self.decoder(y)


def test_each_stream_of_an_encoder_decoder_has_its_own_mask() -> None:
    model, x, y = Streams(), values(2, 3, HIDDEN), values(2, 3, HIDDEN, seed=4)
    first, second = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[1, 0, 0], [1, 1, 0]])
    for masks, wanted in (
        ({"attention_mask": first, "decoder_attention_mask": second}, (x[first != 0], y[second != 0])),
        ({"attention_mask": first}, (x[first != 0], y)),
        ({"decoder_attention_mask": second}, (x, y[second != 0])),
        ({"attention_mask": first[:, None, None]}, (x, y)),
        ({"attention_mask": first[:, :2]}, (x, y)),
    ):
        set_training(model, z_loss=1.0, load_balance=0.1)
        model(x, y, **masks)
        found = auxiliary_loss(model)
        model(*wanted)
        torch.testing.assert_close(found, auxiliary_loss(model))


def test_a_decoder_without_an_encoder_takes_the_only_mask() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = moe_layer()

        def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            y: Tensor = self.decoder(x)
            return y

    model, x, mask = Decoder(), values(2, 3, HIDDEN), torch.tensor([[1, 1, 0], [1, 1, 1]])
    set_training(model, z_loss=1.0)
    model(x, attention_mask=mask)
    found = auxiliary_loss(model)
    model(x[mask != 0])
    torch.testing.assert_close(found, auxiliary_loss(model))


def test_a_model_has_one_door() -> None:
    model = nn.Sequential(moe_layer())
    assert watcher_of(model, TrainingDoor) is watcher_of(model, TrainingDoor)
    set_training(model, z_loss=1.0)
    set_training(model, load_balance=1.0)
    assert len(watcher_of(model, TrainingDoor).states) == 1
    outer = nn.Sequential(model)
    set_training(outer, z_loss=1.0)
    assert (len(watcher_of(model, TrainingDoor).states), len(watcher_of(outer, TrainingDoor).states)) == (0, 1)
