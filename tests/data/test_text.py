"""Text files -> windows: the tokens are those of the whole text, whatever the pieces."""

from __future__ import annotations

import json
import logging
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.small_tokenizers import TEXT, bert_like, byte_level
from moeify.data import DataSet, open_data
from moeify.data.documents import text_pieces

IDS = {"input_ids": torch.tensor([[1, 2, 3]])}


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def all_ids(data: DataSet) -> list[int]:
    return [token for batch in data if isinstance(batch, dict) for row in batch["input_ids"].tolist() for token in row]


def whole(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return found


@pytest.mark.parametrize("pattern", ["gpt2", "llama"])
@pytest.mark.parametrize("size", [300, 1000, 1 << 20])
def test_pieces_give_the_tokens_of_the_whole(pattern: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeify.data.documents.text_pieces.__defaults__", (size,))
    data = open_data(written(tmp_path / "a.txt", TEXT), tokenizer=byte_level(pattern), window=32)
    assert all_ids(data) == whole(byte_level(pattern), TEXT)[: len(all_ids(data))]
    assert len(whole(byte_level(pattern), TEXT)) - len(all_ids(data)) < 2


def test_windows_are_full_but_the_last_and_never_padded(tmp_path: Path) -> None:
    ids = whole(byte_level(), TEXT)
    data = open_data(written(tmp_path / "a.txt", TEXT), tokenizer=byte_level(), window=50, batch=4)
    shapes = [tuple(batch["input_ids"].shape) for batch in data if isinstance(batch, dict)]
    full, rest = divmod(len(ids), 50)
    expected = [(4, 50)] * (full // 4) + ([(full % 4, 50)] if full % 4 else []) + ([(1, rest)] if rest >= 2 else [])
    assert shapes == expected
    assert shapes == [tuple(batch["input_ids"].shape) for batch in data if isinstance(batch, dict)]  # re-iterable


def test_a_file_is_named_as_it_was_when_first_asked(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", TEXT)
    data = open_data(path, tokenizer=byte_level())
    before = data.identity()
    path.unlink()
    assert data.describe().items() >= before.items()
    assert open_data(written(path, TEXT + "."), tokenizer=byte_level()).identity() != before


def test_a_single_token_at_the_end_is_left_out(tmp_path: Path) -> None:
    ids = whole(byte_level(), TEXT)
    data = open_data(written(tmp_path / "a.txt", TEXT), tokenizer=byte_level(), window=10, tokens=21)
    assert all_ids(data) == ids[:20]


def test_tokens_stop_the_reading_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("moeify.data.documents.text_pieces.__defaults__", (200,))
    tokenizer = byte_level()

    class Counting:
        eos_token_id = None

        def __call__(self, text: str, **options: Any) -> Any:
            seen.append(text)
            return tokenizer(text, **options)

    data = open_data(written(tmp_path / "a.txt", TEXT), tokenizer=Counting(), window=16, tokens=40)
    assert all_ids(data) == whole(tokenizer, TEXT)[:40]
    assert data.describe()["tokens"] == 40
    assert sum(map(len, seen)) < len(TEXT) / 2


def test_special_tokens_do_not_count_against_the_limit(tmp_path: Path) -> None:
    data = open_data(written(tmp_path / "a.txt", TEXT), tokenizer=bert_like(), window=12, batch=1, tokens=200)
    inner = [token for batch in data if isinstance(batch, dict) for token in batch["input_ids"][0, 1:-1].tolist()]
    assert inner == whole(bert_like(), TEXT)[:200]


def test_the_special_tokens_of_an_encoder_go_round_each_window(tmp_path: Path) -> None:
    example = {name: torch.ones(1, 4, dtype=torch.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    data = open_data(written(tmp_path / "a.txt", TEXT), tokenizer=bert_like(), window=512, example=example)
    batches = [batch for batch in data if isinstance(batch, dict)]
    assert data.describe()["window"] == 64  # the tokenizer's own limit
    assert all(set(batch) == set(example) for batch in batches)
    assert batches[0]["input_ids"].shape == (4, 64)
    for batch in batches:
        assert bool((batch["input_ids"][:, 0] == 1).all())
        assert bool((batch["input_ids"][:, -1] == 2).all())
        assert bool((batch["attention_mask"] == 1).all())
        assert bool((batch["token_type_ids"] == 0).all())
    inner = [token for batch in batches for row in batch["input_ids"].tolist() for token in row[1:-1]]
    assert inner == whole(bert_like(), TEXT)[: len(inner)]


def test_a_decoder_gets_the_shifted_ids_behind_its_start_token(tmp_path: Path) -> None:
    example = {
        "input_ids": torch.ones(1, 4, dtype=torch.int64),
        "decoder_input_ids": torch.tensor([[7, 1]]),
        "use_cache": False,
    }
    data = open_data(written(tmp_path / "a.txt", TEXT), tokenizer=byte_level(), window=16, example=example)
    batch = next(iter(data))
    assert isinstance(batch, dict)
    assert batch["use_cache"] is False
    assert batch["decoder_input_ids"][:, 0].tolist() == [7] * 4
    assert torch.equal(batch["decoder_input_ids"][:, 1:], batch["input_ids"][:, :-1])


def test_positional_inputs_and_dtypes_follow_the_example(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", TEXT)
    example = (torch.ones(1, 4, dtype=torch.int32), torch.ones(1, 4, dtype=torch.int64))
    data = open_data(path, tokenizer=byte_level(), window=16, example=example, input_names=("input_ids", "position_ids"))
    first, second = next(iter(data))
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    assert (first.dtype, first.shape) == (torch.int32, (4, 16))
    assert second[3].tolist() == list(range(16))


def test_documents_are_joined_by_the_end_of_text_token(tmp_path: Path) -> None:
    documents = ["one fox", "", "two lazy dogs", "three"]
    lines = "\n\n".join(json.dumps({"text": text, "id": 1}) for text in documents)
    data = open_data(written(tmp_path / "a.jsonl", lines), tokenizer=byte_level(), window=4, example=IDS)
    expected: list[int] = []
    for text in filter(None, documents):
        expected += [*whole(byte_level(), text), 0]
    assert all_ids(data) == expected[: len(all_ids(data))]
    assert len(all_ids(data)) >= len(expected) - 2
    assert data.kind == "jsonl"


def test_content_decides_where_the_suffix_does_not(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": TEXT}) + "\n" for _ in range(2))
    assert open_data(written(tmp_path / "corpus", lines), tokenizer=byte_level()).kind == "jsonl"
    assert open_data(written(tmp_path / "README", TEXT), tokenizer=byte_level()).kind == "text"
    assert open_data(written(tmp_path / "braces.txt", lines), tokenizer=byte_level()).kind == "text"


def test_a_byte_order_mark_and_windows_line_ends_are_read_over(tmp_path: Path) -> None:
    plain = open_data(written(tmp_path / "a.txt", TEXT), tokenizer=byte_level())
    dressed = open_data(written(tmp_path / "b.txt", "\ufeff" + TEXT.replace("\n", "\r\n")), tokenizer=byte_level())
    assert all_ids(plain) == all_ids(dressed)


def test_no_warning_about_long_texts(tmp_path: Path) -> None:
    handler = BufferingHandler(100)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        list(open_data(written(tmp_path / "a.txt", TEXT), tokenizer=bert_like(), window=32))
    finally:
        logger.removeHandler(handler)
    assert not handler.buffer


def test_describe_names_the_source(tmp_path: Path) -> None:
    data = open_data(written(tmp_path / "a.txt", TEXT), tokenizer=byte_level(), window=50, batch=3)
    rows = sum(batch["input_ids"].shape[0] for batch in data if isinstance(batch, dict))
    found = data.describe()
    assert found | {"digest": "", "batches": 0, "tokens": 0} == {
        "kind": "text", "name": "a.txt", "digest": "", "window": 50, "batch": 3, "limit": None, "batches": 0, "rows": rows,
        "tokens": 0,
    }  # fmt: skip
    assert found["digest"].startswith("sha256:")
    assert found["tokens"] == len(all_ids(data))
    other = open_data(written(tmp_path / "b.txt", TEXT + "!"), tokenizer=byte_level())
    assert other.describe()["digest"] != found["digest"]


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab1 .\n\té", min_size=1, max_size=300), size=st.integers(1, 40))
def test_pieces_are_the_text_and_bounded(tmp_path_factory: pytest.TempPathFactory, text: str, size: int) -> None:
    path = written(tmp_path_factory.mktemp("pieces") / "a.txt", text)
    pieces = list(text_pieces(path, size))
    assert "".join(pieces) == text
    assert all(pieces)
    assert max(map(len, pieces)) <= 3 * size
