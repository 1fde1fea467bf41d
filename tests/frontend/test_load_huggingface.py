"""Hugging Face folders: the class and the weights that the folder names, the tokenizer where there is one, no network."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moeify.errors import InputError, UsageError
from moeify.frontend.load_model import load_model
from zoo import ZOO


def _saved(name: str, folder: Path, **options: Any) -> Path:
    model: Any = ZOO[name]().model
    model.save_pretrained(folder, **options)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _saved("bert", tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def copy(bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "model"))


def test_the_named_class_comes_with_all_its_weights(bert: Path) -> None:
    loaded = load_model(bert)
    dense = ZOO["bert"]().model.state_dict()
    assert type(loaded.model).__name__ == "BertForSequenceClassification"
    assert all(torch.equal(value, dense[name]) for name, value in loaded.model.state_dict().items())
    assert not loaded.model.training
    assert loaded.tokenizer is None
    assert loaded.notes == ()
    assert loaded.source.name == "bert"
    assert loaded.source.model_class == "transformers.BertForSequenceClassification"
    assert set(loaded.source.digests) == {"config.json", "model.safetensors"}


def test_shards_and_tied_weights_come_together(tmp_path: Path) -> None:
    folder = _saved("gpt2", tmp_path / "m", max_shard_size="6KB")
    assert (folder / "model.safetensors.index.json").is_file()
    model: Any = load_model(folder).model
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(
        model.state_dict()["transformer.h.1.mlp.c_fc.weight"], _weight("gpt2", "transformer.h.1.mlp.c_fc.weight")
    )


def _weight(name: str, tensor: str) -> Tensor:
    found: Tensor = ZOO[name]().model.state_dict()[tensor]
    return found


def test_without_architectures_the_type_decides(tmp_path: Path) -> None:
    folder = _saved("llama", tmp_path / "m")
    _config(folder, architectures=None)
    assert type(load_model(folder).model).__name__ == "LlamaForCausalLM"


def test_the_dtype_is_taken(bert: Path) -> None:
    assert {p.dtype for p in load_model(bert, dtype=torch.bfloat16).model.parameters()} == {torch.bfloat16}


def test_tensors_of_no_use_are_told(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    save_file(state | {"spare.weight": torch.ones(1)}, copy / "model.safetensors", {"format": "pt"})
    assert "spare.weight" in "".join(load_model(copy).notes)


def test_nothing_is_asked_of_any_server_and_nothing_is_printed(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("the network was used")

    _tokenizer(copy)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(copy)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_the_tokenizer_comes_along(copy: Path) -> None:
    _tokenizer(copy)
    tokenizer = load_model(copy).tokenizer
    assert tokenizer is not None
    assert tokenizer("hello world")["input_ids"] == [1, 2]


def test_a_broken_tokenizer_is_a_note(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    (copy / "tokenizer_config.json").write_text("{")
    loaded = load_model(copy)
    assert loaded.tokenizer is None
    assert "tokenizer cannot be read" in loaded.notes[0]


def test_a_model_of_transformers_in_memory_needs_no_example() -> None:
    loaded = load_model(ZOO["llama"]().model)
    assert isinstance(loaded.example, dict)
    assert loaded.source.kind == "module"
    assert loaded.source.model_class == "transformers.LlamaForCausalLM"


def test_a_factory_beside_a_folder_is_refused(bert: Path) -> None:
    with pytest.raises(UsageError, match="factory: is for state_dicts"):
        load_model(bert, factory=lambda: nn.Linear(1, 1))


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1, "world": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _state(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def _only_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _index(folder: Path, text: str) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(text)


_LAYER = "bert.encoder.layer.0.intermediate.dense.weight"

#: caption, what is done to the folder, what the message says
FAULTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("no config.json", lambda f: (f / "config.json").unlink(), "without config.json; copy it"),
    ("no weights", lambda f: (f / "model.safetensors").unlink(), "no weights: model.safetensors is missing"),
    ("pytorch_model.bin only", _only_bin, "pytorch_model.bin only.*save them as safetensors"),
    ("a config that is no JSON", lambda f: (f / "config.json").write_text('{"a": '), "config.json: cannot be read as JSON"),
    ("a config that is no text", lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json: cannot be read"),
    ("a config that is a list", lambda f: (f / "config.json").write_text("[]"), "config.json: holds a list"),
    ("no model_type", lambda f: (f / "config.json").write_text("{}"), "has no model_type"),
    ("an unknown model_type", lambda f: _config(f, model_type="zzzzzzz"), "model_type 'zzzzzzz' is unknown to transformers"),
    ("a model_type misspelt", lambda f: _config(f, model_type="berd"), "did you mean 'bert'"),
    (
        "a model of its own code",
        lambda f: _config(f, model_type="zzzzzzz", auto_map={"AutoModel": "evil.Model"}),
        "Python code of its own, which is not run",
    ),
    ("quantized", lambda f: _config(f, quantization_config={"quant_method": "gptq"}), "quantized weights"),
    ("a config of the wrong sizes", lambda f: _config(f, hidden_size=20), r"unfit: .* is \[\d+.* in the file"),
    ("a config that contradicts itself", lambda f: _config(f, hidden_size=15), "cannot read it: .*ValueError|do not make"),
    ("a config of a text for a number", lambda f: _config(f, hidden_size="big"), "transformers cannot read it"),
    ("a missing tensor", lambda f: _state(f, lambda s: s.pop(_LAYER)), rf"missing: {_LAYER}\)"),
    (
        "a tensor of another shape",
        lambda f: _state(f, lambda s: s.update({_LAYER: torch.ones(2, 3)})),
        rf"{_LAYER} is \[2, 3\]",
    ),
    ("NaN", lambda f: _state(f, lambda s: s[_LAYER].fill_(float("nan"))), f"{_LAYER} holds NaN"),
    ("infinity", lambda f: _state(f, lambda s: s[_LAYER][0].fill_(float("inf"))), f"{_LAYER} holds NaN or inf"),
    (
        "another model's config",
        lambda f: _config(f, model_type="gpt2", architectures=["GPT2LMHeadModel"]),
        "GPT2LMHeadModel .missing: lm_head",
    ),
    ("empty weights", lambda f: (f / "model.safetensors").write_bytes(b""), "no whole safetensors file"),
    ("garbage for weights", lambda f: (f / "model.safetensors").write_bytes(b"x" * 999), "no whole safetensors file"),
    ("a header without tensors", lambda f: save_file({}, f / "model.safetensors"), "holds no tensor"),
    ("a missing shard", lambda f: _index(f, '{"weight_map": {"a": "b.safetensors"}}'), "names the file 'b.safetensors'"),
    ("a shard outside", lambda f: _index(f, '{"weight_map": {"a": "../m.safetensors"}}'), "names the file '../m.safe"),
    (
        "an index of tensors that are not there",
        lambda f: _index(f, json.dumps({"weight_map": {"a.weight": "part.safetensors", _LAYER: "part.safetensors"}})),
        r"lists tensors of part\.safetensors that are not in it: a\.weight;",
    ),
    ("an index of nothing", lambda f: _index(f, '{"weight_map": {}}'), "no weight_map"),
    (
        "architectures of numbers and no weights of theirs",
        lambda f: _config(f, architectures=[3], model_type="gpt2"),
        "missing:",
    ),
    ("an adapter", lambda f: [(f / "config.json").rename(f / "adapter_config.json")], "a whole model and an adapter"),
    ("our own output", lambda f: (f / "moeify.json").write_text("{}"), "converted model already"),
]


@pytest.mark.parametrize(("spoil", "message"), [c[1:] for c in FAULTS], ids=[c[0] for c in FAULTS])
def test_a_spoilt_folder_is_one_line(spoil: Callable[[Path], object], message: str, copy: Path) -> None:
    spoil(copy)
    with pytest.raises(InputError, match=message) as caught:
        load_model(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [0.0001, 0.01, 0.1, 0.5, 0.9, 0.9999])
def test_weights_cut_off_anywhere_are_one_line(part: float, copy: Path) -> None:
    file = copy / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(InputError, match="no whole safetensors file") as caught:
        load_model(copy)
    assert "\n" not in str(caught.value)
