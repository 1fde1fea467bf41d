"""Several sources as one: whose batches come when, where they end, and what they say of themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data.small_tokenizers import TEXT, byte_level
from moeify.data.data_set import DataSet, batch_tokens, of_one
from moeify.data.mixed import mixed, sources_of
from moeify.data.open_data import open_data
from moeify.errors import InputError
from moeify.ir.model_graph import Batch


def source(number: int, rows: list[int]) -> DataSet:
    """Batches of so many rows of two tokens, whose ids tell the source and the batch."""
    batches: list[Batch] = [{"input_ids": torch.full((count, 2), 100 * number + i)} for i, count in enumerate(rows)]
    return open_data(batches)


def ids(batch: Batch) -> Tensor:
    assert isinstance(batch, dict)
    found: Tensor = batch["input_ids"]
    return found


def marks(batches: Iterable[Batch]) -> list[int]:
    return [int(ids(batch)[0, 0]) for batch in batches]


ROWS = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@pytest.mark.slow
@given(st.lists(ROWS, min_size=2, max_size=4), st.one_of(st.none(), st.integers(2, 40)))
def test_batches_come_in_turn_until_all_end_or_the_limit_is_reached(rows: list[list[int]], limit: int | None) -> None:
    data = mixed([source(number, counts) for number, counts in enumerate(rows)], limit)
    turns = zip_longest(*([100 * number + i for i in range(len(counts))] for number, counts in enumerate(rows)))
    whole = [mark for mark in chain.from_iterable(turns) if mark is not None]
    found, sizes = marks(data), [batch_tokens(batch) for batch in data]
    assert found == whole[: len(found)]
    order = list(data.order)
    assert order == [mark // 100 for mark in found]
    assert marks(data) == found, "a second reading"
    assert data.order == order
    assert len(found) == len(whole) or (limit is not None and sum(sizes) >= limit)
    assert limit is None or sum(sizes[:-1]) < limit, "it stops at the batch that reaches the limit"


def test_no_source_is_read_further_than_the_limit_asks() -> None:
    read: list[str] = []

    def part(name: str) -> DataSet:
        def batches() -> Any:
            for _ in range(100):
                read.append(name)
                yield {"input_ids": torch.zeros(1, 4, dtype=torch.int64)}

        return DataSet("batches", name, lambda: of_one(batches()), lambda: None)

    assert len(list(mixed([part("a"), part("b")], 12))) == 3
    assert read == ["a", "b", "a"]


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    """A text, and a short file of documents."""
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"document {i} of the second"}) + "\n" for i in range(9)))
    return [tmp_path / "a.txt", tmp_path / "b.jsonl"]


def content(data: DataSet) -> list[list[list[int]]]:
    return [ids(batch).tolist() for batch in data]


def test_texts_are_mixed_and_a_shorter_one_ends(texts: list[Path]) -> None:
    options: dict[str, Any] = {"tokenizer": byte_level(), "window": 16}
    first, second = (content(open_data(path, batch=2, **options)) for path in texts)
    data = open_data([str(texts[0]), texts[1]], batch=4, **options)
    found = content(data)
    assert found[: 2 * len(second)] == [batch for pair in zip(first, second) for batch in pair]
    assert found[2 * len(second) :] == first[len(second) :]
    said = data.describe()
    assert (said["kind"], said["name"], said["limit"]) == ("mixed", "a.txt + b.jsonl", None)
    assert [part["name"] for part in said["sources"]] == ["a.txt", "b.jsonl"]
    assert said["tokens"] == sum(part["tokens"] for part in said["sources"])
    assert content(open_data(tuple(texts), batch=4, **options)) == found


def test_one_source_in_a_list_is_that_source(texts: list[Path]) -> None:
    options: dict[str, Any] = {"tokenizer": byte_level(), "window": 16, "tokens": 100}
    for path in texts:
        alone, listed = open_data(path, **options), open_data([path], **options)
        assert content(listed) == content(alone)
        assert listed.describe() == alone.describe()


def test_the_digest_is_one_over_those_of_the_sources(texts: list[Path]) -> None:
    def digest(*sources: str | Path) -> Any:
        return open_data(sources, tokenizer=byte_level()).describe()["digest"]

    lines = "".join(f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in texts)
    assert digest(*texts) == f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
    assert digest(*reversed(texts)) != digest(*texts)
    assert digest(texts[0], "data.batches_for_tests:ids") is None


def test_what_was_read_is_no_part_of_the_identity(texts: list[Path]) -> None:
    data = open_data(texts, tokenizer=byte_level(), window=16)
    before = data.identity()
    list(data)
    assert data.identity() == before
    assert data.describe() != before


def test_batches_in_memory_are_one_source() -> None:
    batches = [{"input_ids": torch.zeros(2, 3, dtype=torch.int64)}, (torch.ones(1, 3),)]
    assert sources_of(batches) == (batches,)
    assert sources_of([]) == ([],)
    assert open_data(batches).describe()["kind"] == "batches"
    assert len(list(open_data(tuple(batches)))) == 2


def test_an_error_names_the_source_that_it_is_of(texts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n' * 300 + '{"no": "text"}\n')
    for bad, words in ((tmp_path / "absent.txt", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(InputError, match=f"{bad}: {words}"):
            open_data([texts[0], bad], tokenizer=byte_level())
    late = open_data([texts[0], tmp_path / "bad.jsonl"], tokenizer=byte_level(), window=16)
    with pytest.raises(InputError, match=r'bad.jsonl, line 301: each line needs a field "text"'):
        list(late)
    with pytest.raises(InputError, match=r"a.txt: is text, which needs a tokenizer"):
        open_data(["data.batches_for_tests:ids", texts[0]])
