"""`moeify write`: calibration text by the model itself, whole or not at all, and one error for what cannot write."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import moeify as package
import zoo_huggingface
from cli.command_line import Outcome
from cli.tiny_models import stack
from data.small_tokenizers import bert_like
from moeify.api import OwnText
from moeify.data import own_text
from moeify.errors import InputError, UsageError

Run = Callable[[str], Outcome]
WRITE = "write writer --tokens 300 --window 40"


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_a_model_writes_rows_and_is_calibrated_on_them(moeify: Run, tmp_path: Path) -> None:
    done = moeify(f"{WRITE} -o own.jsonl")
    assert (done.code, done.err) == (0, "")
    assert "--calibrate TEXT --calibrate own.jsonl" in done.out
    assert sorted(os.listdir(tmp_path)) == ["own.jsonl", "writer"]
    assert texts(tmp_path / "own.jsonl")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 40)
    line = "convert writer -o out --recipe markers --experts 4 --top-k 2 --calibrate text.txt --calibrate own.jsonl --json"
    said = moeify(line).data["data"]
    assert said["name"] == "text.txt + own.jsonl"
    assert all(part["tokens"] > 0 for part in said["sources"])


def test_json_says_what_was_written(moeify: Run, tmp_path: Path) -> None:
    done = moeify(f"{WRITE} -o own.jsonl --temperature 0.5 --seed 3 --json")
    assert (done.code, done.err) == (0, "")
    assert done.data["rows"] == len(texts(tmp_path / "own.jsonl"))
    assert 300 <= done.data["tokens"] < 300 + own_text.ROWS
    assert (done.data["output"], done.data["window"], done.data["temperature"], done.data["seed"]) == ("own.jsonl", 40, 0.5, 3)
    assert moeify(f"{WRITE} -o other.jsonl --quiet") == Outcome(0, "", "")


@pytest.mark.slow
def test_a_seed_is_a_file(moeify: Run, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        assert moeify(f"{WRITE} -o {name}.jsonl --seed {seed}").code == 0
    one, again, other = ((tmp_path / f"{name}.jsonl").read_bytes() for name in ("one", "again", "other"))
    assert one == again != other


def test_what_stands_there_is_replaced_by_force_alone(moeify: Run, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("mine")
    done = moeify(f"{WRITE} -o own.jsonl")
    assert (done.code, done.out) == (1, "")
    assert "own.jsonl: exists already; choose another name, or pass --force to replace it" in done.err
    assert (tmp_path / "own.jsonl").read_text() == "mine"
    assert moeify(f"{WRITE} -o own.jsonl --force").code == 0
    assert texts(tmp_path / "own.jsonl")


@pytest.mark.slow
def test_an_interrupt_leaves_nothing(moeify: Run, tmp_path: Path) -> None:
    moeify("inspect writer")

    def stop(task: str, done: int, total: int | None) -> None:
        if done > 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        package.write_text("writer", "own.jsonl", tokens=300, progress=stop)
    assert os.listdir(tmp_path) == ["writer"]


@pytest.mark.slow
def test_the_texts_are_those_of_the_tokens(moeify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moeify("inspect writer")
    rows = list[own_text.Row]()
    plain = own_text.own_rows

    def kept(*args: Any, **options: Any) -> Any:
        for row in plain(*args, **options):
            rows.append(row)
            yield row

    monkeypatch.setattr(own_text, "own_rows", kept)
    found = package.write_text("writer", "own.jsonl", tokens=300, window=40)
    assert isinstance(found, OwnText)
    tokenizer = AutoTokenizer.from_pretrained("writer")
    assert texts(tmp_path / "own.jsonl") == [tokenizer.decode(row.ids) for row in rows]
    assert found.rows == len(rows)
    assert found.tokens == sum(len(row.ids) for row in rows)
    assert found.ended == sum(row.ended for row in rows)
    assert max(len(row.ids) for row in rows) <= 40


@pytest.mark.slow
def test_short_texts_are_the_words_of_the_rows(moeify: Run, tmp_path: Path) -> None:
    whole = moeify(f"{WRITE} -o whole.jsonl --json").data
    done = moeify(f"{WRITE} -o short.jsonl --short --json").data
    assert (done["rows"], done["tokens"]) == (whole["rows"], whole["tokens"])
    assert whole["texts"] == whole["rows"]
    assert done["texts"] == len(texts(tmp_path / "short.jsonl")) > done["rows"]
    assert " ".join(texts(tmp_path / "short.jsonl")).split() == " ".join(texts(tmp_path / "whole.jsonl")).split()


@pytest.mark.slow
def test_a_window_is_cut_to_the_positions_of_the_model(moeify: Run) -> None:
    moeify("inspect writer")
    config = json.loads(Path("writer/config.json").read_text())
    found = package.write_text("writer", "own.jsonl", tokens=4, window=100_000)
    assert found.window == min(config["max_position_embeddings"], 1024)


OTHERS = {
    "weights": (
        "model.pt",
        r"model.pt: is a file of torch.save; a Hugging Face folder or GGUF file of a causal language model",
    ),
    "a decoder without a tokenizer": ("llama", r"llama: brings no tokenizer, so what the model says is no text; put its files"),
    "an encoder": (
        "encoder",
        r"encoder: BertForSequenceClassification is no causal language model, which alone writes text: calibrate on",
    ),
    "an encoder with a head": ("masked", r"masked: BertForMaskedLM is no causal language model"),
    "an archive": ("program.pt2", r"program.pt2: is an archive of torch.export"),
    "a converted folder": ("upcycled", r"upcycled: is a converted model already; give the dense model"),
    "nothing": ("absent", r"absent: no such file or folder"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_cannot_write_is_refused_in_one_line(case: str, moeify: Run, tmp_path: Path) -> None:
    name, message = OTHERS[case]
    if name in ("encoder", "masked"):
        model: Any = zoo_huggingface.build("bert")
        if name == "masked":
            from transformers import BertForMaskedLM

            model = BertForMaskedLM(model.config)
        model.save_pretrained(tmp_path / name)
        bert_like().save_pretrained(tmp_path / name)
    done = moeify(f"write {name} -o own.jsonl")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert message in done.err
    assert not (tmp_path / "own.jsonl").exists()


def test_a_module_in_memory_has_no_tokenizer() -> None:
    with pytest.raises(InputError, match="a module in memory brings no tokenizer, which text needs: save both as"):
        package.write_text(stack(), "own.jsonl")  # type: ignore[arg-type]  # what people try


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"tokens": 1}, "tokens is 1: it must be at least 2"),
        ({"window": 1}, "window is 1: it must be at least 2"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0: choose a number above 0, such as 0.8"),
        ({"temperature": float("nan")}, "temperature is nan: choose a number above 0"),
        ({"output": "own.txt"}, "own.txt: holds an object a line: choose a name that ends in .jsonl"),
        ({"device": "tpu"}, "device is 'tpu'"),
    ],
)
def test_options_out_of_bounds_are_refused_before_anything_is_read(option: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        package.write_text("absent", **{"output": "own.jsonl", **option})
