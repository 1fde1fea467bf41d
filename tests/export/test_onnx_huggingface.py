"""Hugging Face models as ONNX files: a decoder with its cache, an encoder, an encoder-decoder, dense and converted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from converted import converted
from moeify.errors import InputError
from moeify.export.onnx.exporting import export_onnx
from moeify.export.onnx.report import OnnxReport
from moeify.runtime.decoder import Decoder
from moeify.runtime.native import register, wanted
from moeify.runtime.session import session
from zoo import EXPORTED, WITH_SITES, WITHOUT_SITES, ZOO, Zoo, ids

#: They export whole models.
pytestmark = pytest.mark.slow

Exported = tuple[Zoo, Path, OnnxReport]

#: Dense models, one of each kind of inputs.
DENSE = ("bert", "clip", "conv-1d", "gpt2", "llama", "nanogpt", "t5", "vit", "wav2vec2")


def config(zoo: Zoo) -> Any:
    return zoo.model.config


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    zoo, _ = converted("llama", top_k=2)
    config(zoo).use_cache = True
    path = tmp_path_factory.mktemp("onnx") / "llama.onnx"
    return zoo, path, export_onnx(zoo.model, zoo.example, path)


def test_names_and_axes_of_a_decoder(llama: Exported) -> None:
    zoo, _, report = llama
    layers = config(zoo).num_hidden_layers
    past = [f"past_key_values.{i}.{part}" for i in range(layers) for part in ("key", "value")]
    assert [port.name for port in report.inputs] == ["input_ids", "attention_mask", "position_ids", *past]
    assert [port.name for port in report.outputs] == ["logits", *(name.replace("past_key_values", "present") for name in past)]
    dims = {port.name: port.dims for port in (*report.inputs, *report.outputs)}
    heads, width = config(zoo).num_key_value_heads, config(zoo).head_dim
    assert dims["input_ids"] == dims["position_ids"] == ("batch", "sequence")
    assert dims["attention_mask"] == ("batch", "total_sequence")
    assert dims["past_key_values.1.value"] == ("batch", heads, "past_sequence", width)
    assert dims["present.0.key"] == ("batch", heads, "past_sequence + sequence", width)
    assert dims["logits"] == ("batch", "sequence", config(zoo).vocab_size)
    assert report.moe_layers == ("model.layers.0.mlp", "model.layers.1.mlp")
    assert config(zoo).use_cache is True


def test_a_decoder_is_checked_with_its_cache(llama: Exported) -> None:
    assert [check.name for check in llama[2].checks] == [
        f"{prefix}prefill and steps, batch {batch}{by}"
        for prefix in ("all experts on, ", "")
        for by in ("", *([", native library"] if wanted() else []))
        for batch in (1, 3)
    ]
    assert max(check.distance for check in llama[2].checks) < 2e-6


@pytest.mark.parametrize("batch", [1, 3])
def test_greedy_generation_gives_the_tokens_of_generate(llama: Exported, batch: int) -> None:
    zoo, path, _ = llama
    prompt = ids(batch, 6, seed=batch)
    mask = torch.ones_like(prompt)
    for row in range(batch):
        mask[row, :row] = 0
    model: Any = zoo.model
    want = model.generate(prompt, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)[
        :, 6:
    ]
    found = Decoder(session(path, threads=1)).generate(prompt.numpy(), 8, mask.numpy())
    np.testing.assert_array_equal(found, want.numpy())


def test_a_sequence_ends_with_the_end_token(llama: Exported) -> None:
    decoder = Decoder(session(llama[1], threads=1))
    prompt = ids(1, 6).numpy()
    free = decoder.generate(prompt, 8)
    end = int(free[0, 2])
    first = int(np.flatnonzero(free[0] == end)[0])
    np.testing.assert_array_equal(decoder.generate(prompt, 8, end=end), free[:, : first + 1])
    assert decoder.generate(prompt, 0).shape == (1, 0)


def test_steps_give_the_logits_of_one_long_prefill(llama: Exported) -> None:
    decoder = Decoder(session(llama[1], threads=1))
    tokens = ids(2, 9).numpy()
    whole = decoder.step(tokens, np.ones_like(tokens))
    parts = [decoder.step(tokens[:, :4], np.ones((2, 4), dtype=np.int64))]
    parts += [decoder.step(tokens[:, i : i + 1]) for i in range(4, 9)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)


@pytest.mark.parametrize("native", [False, True])
def test_fusions_of_onnx_runtime_work_beside_our_nodes(native: bool, llama: Exported, tmp_path: Path) -> None:
    zoo, path, _ = llama
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    if native:
        register(options)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    layers = config(zoo).num_hidden_layers
    assert operators["SimplifiedLayerNormalization"] == 2 * layers + 1
    assert operators["FusedMatMul"] == layers  # the scale of attention
    assert operators["MoE"] == (layers if native else 0)
    assert native or operators["QuickGelu"] >= layers  # SiLU, inside of bodies too
    assert not {"Reciprocal", "Pow", "ReduceMean"} & set(operators)


def test_an_encoder(tmp_path: Path) -> None:
    zoo, _ = converted("encoder-pre-gelu", top_k=2)
    report = export_onnx(zoo.model, zoo.example, tmp_path / "m.onnx")
    assert report.inputs[0].dims[:2] == ("batch", "sequence")
    assert len(report.moe_layers) == len(zoo.sites)
    assert max(check.distance for check in report.checks) < 2e-6
    with pytest.raises(InputError, match="the ONNX file is no decoder with a cache"):
        Decoder(session(tmp_path / "m.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXPORTED if name in WITH_SITES])
def test_every_converted_model_of_the_zoo(name: str, tmp_path: Path) -> None:
    zoo, _ = converted(name, top_k=2)
    report = export_onnx(zoo.model, zoo.example, tmp_path / "m.onnx")
    assert len(report.moe_layers) >= len(zoo.sites)
    assert max(check.distance for check in report.checks) < 3e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DENSE, *(name for name in EXPORTED if name in WITHOUT_SITES)])
def test_dense_models(name: str, tmp_path: Path) -> None:
    zoo = ZOO[name]()
    report = export_onnx(zoo.model, zoo.example, tmp_path / "m.onnx")
    assert report.moe_layers == ()
    assert max(check.distance for check in report.checks) < 3e-6
