"""Texts cut to paragraphs and pieces: no word is lost, none is twice, and both kinds are there."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from moeify.data.short_texts import short_texts

LONG = " ".join(f"word{i}" for i in range(60))


@given(st.lists(st.sampled_from([LONG, "a heading", "", "  "])), st.integers(0, 1000))
def test_every_word_of_a_paragraph_is_there_once(lines: list[str], seed: int) -> None:
    paragraphs = [line for line in lines if line == LONG] or lines
    found = list(short_texts("\n".join(lines), random.Random(seed)))
    assert " ".join(found).split() == " ".join(paragraphs).split()
    assert all(found)
    assert all(text in paragraphs or len(text.split()) <= 32 for text in found)


def test_half_of_the_paragraphs_stay_whole() -> None:
    found = list(short_texts("\n".join([LONG] * 400), random.Random(0)))
    assert 170 <= found.count(LONG) <= 230
    lengths = [len(text.split()) for text in found if text != LONG]
    assert set(lengths) >= {1, 2, 3, 4, 6, 8, 12, 16, 24, 32}


def test_a_seed_is_a_cut() -> None:
    text = "\n".join([LONG] * 20)
    one, again, other = (list(short_texts(text, random.Random(seed))) for seed in (1, 1, 2))
    assert one == again != other
