"""Encoder-decoders as one ONNX graph without a cache: names, free axes, the numbers at other sizes, and the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from converted import converted
from moeify.errors import InputError
from moeify.export.onnx.exporting import export_onnx
from moeify.export.onnx.report import OnnxReport
from moeify.runtime.encoder_decoder import EncoderDecoder
from moeify.runtime.native import wanted
from moeify.runtime.session import session
from zoo import ZOO, Zoo, ids, values

#: They export whole models.
pytestmark = pytest.mark.slow

START, NEW = 1, 6

Exported = tuple[Zoo, Path, OnnxReport]


@pytest.fixture(
    params=["t5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5-gated", "bart", "marian", "whisper"))],
    scope="module",
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    zoo, _ = converted(request.param, top_k=2)
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    return zoo, path, export_onnx(zoo.model, zoo.example, path)


def _speaks(zoo: Zoo) -> bool:
    return "input_features" in zoo.example


def test_names_and_axes(exported: Exported) -> None:
    zoo, _, report = exported
    model: Any = zoo.model
    dims = {port.name: port.dims for port in report.inputs}
    decoder = ("decoder_input_ids", ("batch", "decoder_sequence"))
    if _speaks(zoo):
        features = (model.config.num_mel_bins, 2 * model.config.max_source_positions)
        assert list(dims.items()) == [("input_features", ("batch", *features)), decoder]
    else:
        assert list(dims.items()) == [
            ("input_ids", ("batch", "sequence")),
            ("attention_mask", ("batch", "sequence")),
            decoder,
        ]
    assert [(port.name, port.dims) for port in report.outputs] == [
        ("logits", ("batch", "decoder_sequence", model.config.vocab_size))
    ]
    assert len(report.moe_layers) == len(zoo.sites)


def test_it_is_checked_at_other_sizes(exported: Exported) -> None:
    zoo, _, report = exported
    names = ["the example", "batch + 1", "batch + 1, length + 3", "length - 1"]
    if not _speaks(zoo):
        names += ["decoder_sequence + 2", "sequence + 2", "padding"]
    assert [check.name for check in report.checks] == [
        f"{prefix}{name}{by}"
        for prefix in ("all experts on, ", "")
        for by in ("", *([", native library"] if wanted() else []))
        for name in names
    ]
    assert max(check.distance for check in report.checks) < 3e-6


def _inputs(zoo: Zoo, batch: int) -> dict[str, Tensor]:
    if isinstance(zoo.example, dict) and _speaks(zoo):
        return {"input_features": values(batch, *zoo.example["input_features"].shape[1:], seed=batch)}
    found = {"input_ids": ids(batch, 9, seed=batch), "attention_mask": torch.ones(batch, 9, dtype=torch.int64)}
    for row in range(batch):
        found["attention_mask"][row, 9 - row :] = 0
    return found


@pytest.mark.parametrize("batch", [1, 3])
def test_greedy_text_is_that_of_generate(exported: Exported, batch: int) -> None:
    zoo, path, _ = exported
    model: Any = zoo.model
    inputs = _inputs(zoo, batch)
    want = torch.full((batch, 1), START)
    with torch.no_grad():
        for _ in range(NEW):
            want = torch.cat([want, model(**inputs, decoder_input_ids=want).logits[:, -1:].argmax(-1)], dim=1)
    generated = model.generate(
        **inputs, decoder_start_token_id=START, max_new_tokens=NEW, do_sample=False, num_beams=1, eos_token_id=None,
        pad_token_id=0, forced_eos_token_id=None, forced_bos_token_id=None, suppress_tokens=None, begin_suppress_tokens=None,
        bad_words_ids=None,
    )  # fmt: skip
    found = EncoderDecoder(session(path, threads=1)).generate({k: v.numpy() for k, v in inputs.items()}, NEW, start=START)
    np.testing.assert_array_equal(found, want[:, 1:].numpy())
    np.testing.assert_array_equal(found, generated[:, -NEW:].numpy())


def test_a_sequence_ends_with_the_end_token(exported: Exported) -> None:
    zoo, path, _ = exported
    driver = EncoderDecoder(session(path, threads=1))
    inputs = {k: v.numpy() for k, v in _inputs(zoo, 1).items()}
    free = driver.generate(inputs, NEW, start=START)
    end = int(free[0, 2])
    first = int(np.flatnonzero(free[0] == end)[0])
    np.testing.assert_array_equal(driver.generate(inputs, NEW, start=START, end=end), free[:, : first + 1])
    assert driver.generate(inputs, 0, start=START).shape == (1, 0)


def test_an_encoder_is_none(tmp_path: Path) -> None:
    zoo = ZOO["flat-stack"]()
    export_onnx(zoo.model, zoo.example, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="is no encoder-decoder: it lacks decoder_input_ids"):
        EncoderDecoder(session(tmp_path / "m.onnx"))


def test_streams_of_equal_length_keep_axes_of_their_own(tmp_path: Path) -> None:
    zoo = ZOO["t5"]()
    tokens = ids(1, 4)
    report = export_onnx(zoo.model, {"input_ids": tokens, "decoder_input_ids": tokens}, tmp_path / "m.onnx")
    assert [port.dims for port in report.inputs] == [("batch", "sequence")] * 2 + [("batch", "decoder_sequence")]
