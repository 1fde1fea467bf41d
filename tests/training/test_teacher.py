"""What the dense model says is kept, and is as good to learn from as what it would say again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from moeify.errors import ConversionError
from moeify.training.output_distance import mean_distance
from moeify.training.teacher import LIKELIEST, Teacher

TOKENS = torch.randint(50, (3, 7), generator=torch.Generator().manual_seed(1))


class Speaker(nn.Module):
    """Logits of ids, and how often it was asked."""

    def __init__(self, vocabulary: int, seed: int, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(scale * torch.randn(50, vocabulary, generator=generator))
        self.asked = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        self.asked += 1
        return {"logits": self.table[input_ids]}


def test_with_a_small_vocabulary_it_is_the_whole_divergence_and_the_dense_model_is_asked_once() -> None:
    dense, model = Speaker(LIKELIEST, 0), Speaker(LIKELIEST, 1)
    batch = {"input_ids": TOKENS}
    teacher = Teacher(dense)
    found = [float(teacher.answer(0, batch).distance(model, batch).detach()) for _ in range(3)]
    assert dense.asked == 1
    teacher.answer(1, batch)
    assert dense.asked == 2
    assert found == [pytest.approx(mean_distance(dense, model, [batch])[0], rel=1e-5)] * 3


def test_of_a_large_one_the_unlikely_tokens_count_as_one() -> None:
    dense, model = Speaker(5 * LIKELIEST, 0, 3.0), Speaker(5 * LIKELIEST, 1, 3.0)
    batch = {"input_ids": TOKENS}
    answer = Teacher(dense).answer(0, batch)
    d, m = (speaker.table.detach()[TOKENS].flatten(0, 1).softmax(-1) for speaker in (dense, model))
    order = d.sort(-1, descending=True).indices

    def merged(p: Tensor) -> Tensor:
        ranked = p.gather(-1, order)
        return torch.cat((ranked[:, :LIKELIEST], ranked[:, LIKELIEST:].sum(-1, keepdim=True)), -1)

    wanted = (merged(d) * (merged(d).log() - merged(m).log())).sum(-1).mean()
    found = answer.distance(model, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert float(found.detach()) < mean_distance(dense, model, [batch])[0]
    assert float(answer.distance(copy.deepcopy(dense), batch).detach()) == pytest.approx(0, abs=1e-5)
    found.backward()  # type: ignore[no-untyped-call]  # torch
    assert model.table.grad is not None
    assert bool(torch.isfinite(model.table.grad).all())
    assert dense.table.grad is None


def test_hidden_tokens_do_not_count() -> None:
    dense, model = Speaker(LIKELIEST, 0), Speaker(LIKELIEST, 1)
    mask = torch.ones_like(TOKENS)
    mask[1:] = 0
    hidden, alone = {"input_ids": TOKENS, "attention_mask": mask}, {"input_ids": TOKENS[:1]}
    found = Teacher(dense).answer(0, hidden).distance(model, hidden)
    torch.testing.assert_close(found, Teacher(dense).answer(0, alone).distance(model, alone))


def test_outputs_of_two_shapes_are_refused() -> None:
    batch = {"input_ids": TOKENS}
    with pytest.raises(ConversionError, match=r"the logits of the two models differ in shape: \[21, 99\], \[21, 98\]"):
        Teacher(Speaker(99, 0)).answer(0, batch).distance(Speaker(98, 1), batch)


def test_what_has_no_room_is_asked_about_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeify.training.teacher._MEMORY", 21 * LIKELIEST * 8)
    dense, batch = Speaker(LIKELIEST, 0), {"input_ids": TOKENS}
    teacher = Teacher(dense)
    for number in (0, 0, 1, 1):
        teacher.answer(number, batch)
    assert dense.asked == 3
