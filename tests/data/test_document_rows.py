"""Documents of a .jsonl file: rows of their own for a model that reads one text at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.small_tokenizers import bert_like, byte_level
from moeify.data import DataSet, open_data
from moeify.data.document_rows import document_batches
from moeify.data.text_encoder import TextEncoder
from moeify.data.text_inputs import TextInputs
from moeify.errors import InputError

ENCODER = {name: torch.ones(1, 3, dtype=torch.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
WORDS = ["the", "of", "a", "quick", "model", "expert"]


def written(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), "utf-8")
    return path


def opened(path: Path, **options: Any) -> DataSet:
    return open_data(path, tokenizer=bert_like(), example=ENCODER, **options)


def rows(data: DataSet) -> list[list[int]]:
    """The ids of each row that its mask shows."""
    found = []
    for batch in data:
        assert isinstance(batch, dict)
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"]):
            length = int(mask.sum())
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
            assert ids[length:].tolist() == [bert_like().pad_token_id] * (len(ids) - length)
            found.append(ids[:length].tolist())
    return found


def called(text: str) -> list[int]:
    """As the model's own tokenizer calls it."""
    return [int(token) for token in bert_like()(text)["input_ids"]]


def test_each_document_is_a_row_as_the_tokenizer_writes_it(tmp_path: Path) -> None:
    documents = ["the model", "a", "of the expert a quick model", "quick"]
    data = opened(written(tmp_path / "a.jsonl", documents), batch=4)
    assert rows(data) == [called(text) for text in documents]
    [batch] = data
    assert isinstance(batch, dict)
    assert batch["input_ids"].shape == batch["token_type_ids"].shape == (4, 16)


def test_a_long_document_is_several_rows_of_a_window(tmp_path: Path) -> None:
    text = " ".join(WORDS * 20)
    found = rows(opened(written(tmp_path / "a.jsonl", [text, "the"]), window=50))
    assert [len(row) for row in found] == [50, 50, 120 - 2 * 48 + 2, 3]
    assert [token for row in found[:3] for token in row[1:-1]] == called(text)[1:-1]


def test_short_rows_take_the_room_of_full_windows(tmp_path: Path) -> None:
    data = opened(written(tmp_path / "a.jsonl", ["the model"] * 40), window=32, batch=4)
    assert [tuple(batch["input_ids"].shape) for batch in data if isinstance(batch, dict)] == [(8, 16)] * 5


def test_tokens_are_those_of_the_text(tmp_path: Path) -> None:
    found = rows(opened(written(tmp_path / "a.jsonl", ["the model", "a quick expert", "of"]), tokens=4))
    assert found == [called("the model"), called("a quick")]


def test_where_texts_are_no_rows_windows_go_on_over_their_ends(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", ["the model " * 20, "the model " * 20])
    for tokenizer, example in ((byte_level(), ENCODER), (bert_like(), {"input_ids": ENCODER["input_ids"]})):
        data = open_data(file, tokenizer=tokenizer, example=example, window=32)
        first = next(iter(data))
        assert isinstance(first, dict)
        assert first["input_ids"].shape[1] == 32


def test_a_text_file_stays_one_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the model\na quick expert\n" * 40, "utf-8")
    first = next(iter(opened(tmp_path / "a.txt", window=32)))
    assert isinstance(first, dict)
    assert first["input_ids"].shape == (4, 32)
    assert bool(first["attention_mask"].all())


def test_documents_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds 0 tokens; give at least 2"):
        opened(written(tmp_path / "a.jsonl", [" ", "\n"]))


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    window=st.integers(4, 64),
    batch=st.integers(1, 5),
    tokens=st.none() | st.integers(1, 200),
)
def test_every_run_is_a_row_once_and_no_batch_is_larger_than_asked(
    lengths: list[int], window: int, batch: int, tokens: int | None
) -> None:
    texts = [" ".join(WORDS[i % len(WORDS)] for i in range(length)) for length in lengths]
    encoder, inputs = TextEncoder.of(bert_like()), TextInputs.of(ENCODER, "here")
    size, left = window - 2, tokens
    wanted: list[list[int]] = []
    for text in texts:
        ids = called(text)[1:-1][:left]
        left = left and left - len(ids)
        wanted += [ids[start : start + size] for start in range(0, len(ids), size)]
        if left == 0:
            break
    found: list[list[int]] = []
    for each in document_batches(encoder, texts, window, batch, tokens, inputs):
        assert isinstance(each, dict)
        assert each["input_ids"].numel() <= batch * window
        for ids, mask in zip(each["input_ids"], each["attention_mask"].bool()):
            assert len(ids) - int(mask.sum()) < 16
            found.append(ids[mask][1:-1].tolist())
    assert sorted(found) == sorted(wanted)
