"""A converted decoder in onnxruntime-genai: it generates what the reloaded model does in PyTorch."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime_genai as genai
import pytest
import torch
from torch import nn

import moeify
from converted import converted
from data.small_tokenizers import byte_level
from export.stock_models import decoder
from moeify import api
from moeify.errors import ConversionError, OutputError
from moeify.export.genai import writing
from moeify.export.genai.config import genai_config, padding
from moeify.export.genai.decoders import check_class, decoder_example
from moeify.export.genai.report import GenaiReport
from moeify.export.onnx.report import OnnxReport

#: They export whole models.
pytestmark = pytest.mark.slow

PROMPTS = ("The quick brown fox", "Line 7: lazy dogs,\n\tindented")
#: What most of the tests write.
FILES = ("genai_config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted Llama with a tokenizer, 2 of 4 experts on. Its vocabulary has rows that the tokenizer does not use."""
    place = tmp_path_factory.mktemp("genai")
    tokenizer = byte_level()
    dense: Any = decoder("llama", vocab_size=len(tokenizer) + 3, eos_token_id=0, bos_token_id=0)
    dense.save_pretrained(place / "dense")
    tokenizer.save_pretrained(place / "dense")
    moeify.convert(place / "dense", place / "out", experts=4, top_k=2)
    return place / "out"


@pytest.fixture(scope="module")
def written(folder: Path) -> GenaiReport:
    return api.export_genai(folder, folder.parent / "genai")


@pytest.fixture(scope="module")
def eager(folder: Path) -> Any:
    return moeify.load(folder)


def from_pytorch(model: Any, ids: list[int], count: int = 12) -> list[int]:
    tokens = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return [int(token) for token in tokens[0, len(ids) :]]


def from_genai(folder: str | Path, rows: np.ndarray[Any, Any], count: int = 12) -> list[list[int]]:
    """rows: int [sequences, tokens]; what comes after each."""
    model = genai.Model(str(folder))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=rows.shape[1] + count, batch_size=len(rows), do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(rows.astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [[int(token) for token in generator.get_sequence(i)[rows.shape[1] :]] for i in range(len(rows))]


def test_the_folder_holds_what_genai_reads(written: GenaiReport) -> None:
    assert written.files == FILES
    assert (written.version, written.tokens) == (genai.__version__, 16)
    names = [port.name for port in written.model.inputs]
    assert names[:4] == ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key"]
    config = json.loads((Path(written.path) / "genai_config.json").read_text("utf-8"))
    assert config["search"]["past_present_share_buffer"] is False
    assert "custom_ops_library" not in config["model"]["decoder"]["session_options"]
    assert config["model"]["pad_token_id"] == config["model"]["vocab_size"] - 1
    kept = json.loads((Path(written.path) / "moeify-export.json").read_text("utf-8"))
    assert kept == json.loads(json.dumps(written.to_json()))
    assert f"opened, 16 greedy tokens with the logits of ONNX Runtime\n{written.path}/model.onnx: " in str(written)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_text_goes_in_and_the_tokens_of_pytorch_come_out(prompt: str, written: GenaiReport, eager: Any) -> None:
    reader = genai.Tokenizer(genai.Model(written.path))
    ids = byte_level()(prompt).input_ids
    assert list(reader.encode(prompt)) == ids
    assert reader.decode(np.array(ids, dtype=np.int32)) == prompt
    assert from_genai(written.path, np.array([ids])) == [from_pytorch(eager, ids)]


def test_prompts_of_unequal_length_are_one_batch(written: GenaiReport, eager: Any) -> None:
    rows = genai.Tokenizer(genai.Model(written.path)).encode_batch(list(PROMPTS)).as_numpy()
    prompts = [byte_level()(prompt).input_ids for prompt in PROMPTS]
    assert len(prompts[0]) != len(prompts[1])
    assert from_genai(written.path, rows) == [from_pytorch(eager, ids) for ids in prompts]


def test_the_end_of_a_text_in_a_prompt_is_read(written: GenaiReport, eager: Any) -> None:
    """It is no padding, though the config of the model names no other token for that."""
    rows = np.array([[5, 0, 9, 0], [7, 8, 0, 0]])
    assert from_genai(written.path, rows) == [from_pytorch(eager, [int(i) for i in row]) for row in rows]


def test_the_native_operator_comes_with_the_folder(folder: Path, eager: Any, tmp_path: Path) -> None:
    report = api.export_genai(folder, tmp_path / "native", lowering="native")
    assert report.model.native_library == "needed"
    moved = shutil.move(tmp_path / "native", tmp_path / "elsewhere")
    ids = byte_level()(PROMPTS[0]).input_ids
    assert from_genai(moved, np.array([ids])) == [from_pytorch(eager, ids)]
    (library,) = set(report.files) - set(FILES)
    (tmp_path / "elsewhere" / library).unlink()
    with pytest.raises(Exception, match=library):
        genai.Model(str(moved))


@pytest.mark.parametrize("context", [pytest.param(16, marks=pytest.mark.slow), 8])
def test_a_context_that_is_hardly_longer_than_the_prompt(context: int, tmp_path: Path) -> None:
    model: Any = decoder("llama", max_position_embeddings=context)
    report = writing.export_genai(model, {"input_ids": torch.arange(1, 13)[None]}, tmp_path / "genai")
    assert report.tokens == context - 1
    assert f"{context - 1} greedy tokens" in str(report)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_files_of_fewer_bits_are_opened(precision: str, folder: Path, tmp_path: Path) -> None:
    """The check of the export compares each token's logits with those of ONNX Runtime."""
    report = api.export_genai(folder, tmp_path / "genai", precision=precision)
    assert report.tokens == 16
    assert report.model.precision == precision


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gpt-j", "opt", "bloom", "falcon", "mistral", "qwen3", "gemma2", "gemma3", "phi3"])
def test_other_decoders_are_opened(name: str, tmp_path: Path) -> None:
    zoo, _ = converted(name, top_k=2)
    report = writing.export_genai(zoo.model, zoo.example, tmp_path / "genai")
    assert report.files == ("genai_config.json", "model.onnx")
    assert report.tokens


@pytest.fixture
def ready(written: GenaiReport, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ONNX file of the folder is not made again."""

    def copied(model: nn.Module, example: Any, output: Path, **options: Any) -> OnnxReport:
        shutil.copyfile(Path(written.path) / "model.onnx", output)
        return written.model

    monkeypatch.setattr(writing, "export_onnx", copied)


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize(
    ("caption", "change", "message"),
    [
        ("an input twice", {"past_key_names": "past_key_values.%d.value"}, "cannot run the folder"),
        (
            "keys for values",
            {"present_key_names": "present.%d.value", "present_value_names": "present.%d.key"},
            "token [0-9]+: its logits are .* away from those of ONNX Runtime with the same file",
        ),
    ],
)
def test_a_folder_that_generates_something_else_is_not_kept(
    caption: str, change: dict[str, str], message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*given: Any) -> dict[str, Any]:
        config = genai_config(*given)
        for side in ("inputs", "outputs"):
            names = config["model"]["decoder"][side]
            names.update({name: value for name, value in change.items() if name in names})
        return config

    monkeypatch.setattr(writing, "genai_config", wrong)
    with pytest.raises(ConversionError, match=message):
        api.export_genai(folder, tmp_path / "genai")
    assert list(tmp_path.iterdir()) == [], caption


@pytest.mark.usefixtures("ready")
def test_exporting_needs_no_genai(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    report = api.export_genai(folder, tmp_path / "genai")
    assert report.version is None
    assert "not opened in onnxruntime-genai, which is not installed: pip install 'moeify[genai]'" in str(report)
    assert {path.name for path in (tmp_path / "genai").iterdir()} == {*FILES, "moeify-export.json"}


@pytest.mark.usefixtures("ready")
def test_a_folder_is_replaced_by_force_alone(folder: Path, tmp_path: Path) -> None:
    api.export_genai(folder, tmp_path / "genai")
    with pytest.raises(OutputError, match="exists already"):
        api.export_genai(folder, tmp_path / "genai")
    api.export_genai(folder, tmp_path / "genai", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["genai"]


def test_other_models_are_refused_before_their_weights_are_read(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    manifest = json.loads((other / "moeify.json").read_text("utf-8"))
    manifest["source"]["model_class"] = "transformers.BertModel"
    (other / "moeify.json").write_text(json.dumps(manifest))
    (other / "moeify.safetensors").write_bytes(b"")
    with pytest.raises(ConversionError, match="BertModel: onnxruntime-genai is given decoders of text of transformers alone"):
        api.export_genai(other, tmp_path / "genai")
    assert not (tmp_path / "genai").exists()


@pytest.mark.parametrize("name", ["transformers.T5ForConditionalGeneration", "transformers.ViTModel", "torch.nn.Sequential"])
def test_classes_that_are_no_decoders(name: str) -> None:
    with pytest.raises(ConversionError, match=f"{name.rpartition('.')[2]}: onnxruntime-genai is given decoders of text"):
        check_class(name)


class Cached(nn.Module):
    """A decoder with a cache of keys and values [batch, heads, tokens, 4], by layer."""

    def __init__(self, *heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, input_ids: Any, attention_mask: Any = None, past_key_values: Any = None, use_cache: bool = True) -> Any:
        layers = [SimpleNamespace(keys=torch.zeros(1, h, 2, 4), values=torch.zeros(1, h, 2, 4)) for h in self.heads]
        return Output(logits=torch.zeros(1, 2, 8), past_key_values=SimpleNamespace(layers=layers))


class Output(dict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        return self[name]


def test_caches_that_genai_does_not_hold_are_refused() -> None:
    ids = torch.zeros(1, 2, dtype=torch.int64)
    assert list(decoder_example(Cached(2, 2), (ids,))) == ["input_ids"]
    with pytest.raises(ConversionError, match=r"Cached: its layers differ in heads or head sizes \(1 of 4, 2 of 4\)"):
        decoder_example(Cached(2, 1), {"input_ids": ids})
    with pytest.raises(ConversionError, match="Cached: keeps no cache of keys and values of every layer"):
        decoder_example(Cached(), {"input_ids": ids})
    with pytest.raises(ConversionError, match="Cached: the example inputs hold no token ids"):
        decoder_example(Cached(2), (ids.float(),))


class Words:
    """A tokenizer of so many tokens."""

    def __init__(self, count: int, unknown: int | None = None) -> None:
        self.count, self.unk_token_id = count, unknown

    def __len__(self) -> int:
        return self.count


@pytest.mark.parametrize(
    ("caption", "pad", "used", "tokenizer", "expected"),
    [
        ("its own", 3, (1, 2), Words(10), 3),
        ("its own is the end of a text: a row without a token", 2, (1, 2), Words(8), 9),
        ("none of its own, and no such row: the unknown token", None, (1, 2), Words(10, unknown=0), 0),
        ("the unknown token is the end of a text as well", None, (1, 2), Words(10, unknown=2), 2),
        ("its own is outside of the vocabulary", 10, (2,), None, 2),
        ("nothing is known", None, (), None, 0),
    ],
)
def test_the_token_for_padding(caption: str, pad: int | None, used: tuple[int, ...], tokenizer: Any, expected: int) -> None:
    assert padding(pad, used, 10, tokenizer) == expected, caption
