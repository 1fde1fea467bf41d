"""The output folder: what is saved comes back, the same bytes every time, nothing half-written, damage named."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moeify.errors import InputError, OutputError
from moeify.export import folder_weights
from moeify.export.folder import LayerEntry, load_folder, save_folder
from moeify.frontend.load_model import load_model
from moeify.frontend.load_safetensors import read_safetensors
from moeify.frontend.loaded import LoadedModel
from moeify.ir.feed_forward import Rewrite
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.layers.moe_layer import MoELayer
from moeify.splice.eager import install
from zoo import ZOO, values

_REPORT = {"layers": [{"path": "a", "loss": 0.5, "bound": float("inf")}], "name": "täglich"}


class Blocks(nn.Module):
    """A model of no package: a tied head, a buffer that no file holds, and one that files do."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(16, 48), nn.GELU(), nn.Linear(48, 16))
        self.first = nn.Linear(16, 16, bias=False)
        self.last = nn.Linear(16, 16, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.inner(self.first(x)) * self.scale)
        return y


def make() -> nn.Module:
    return Blocks()


_GATED = MoEConfig(16, 16, "silu", True, (8, 20, 48), RouterConfig("linear"), top_k=1, selection_bias=True)
_PLAIN = replace(_GATED, activation="gelu", gated=False, up_bias=True, output_bias=True)

#: model of the zoo -> its first feed-forward network
_SITES: Mapping[str, LayerEntry] = {
    "llama": LayerEntry(Rewrite("submodule", {"ffn": "model.layers.0.mlp"}), _GATED),
    "gpt2": LayerEntry(Rewrite("submodule", {"ffn": "transformer.h.1.mlp"}), replace(_PLAIN, output_dropout=0.1)),
    "bert": LayerEntry(
        Rewrite(
            "identity",
            {
                "up": "bert.encoder.layer.0.intermediate.dense",
                "activation": "bert.encoder.layer.0.intermediate.intermediate_act_fn",
                "down": "bert.encoder.layer.0.output.dense",
            },
        ),
        _PLAIN,
    ),
}


def _converted(loaded: LoadedModel, entry: LayerEntry) -> dict[str, LayerEntry]:
    """Puts a random MoE layer into the model, in place."""
    layer = MoELayer(entry.config, dtype=next(loaded.model.parameters()).dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    install(loaded.model, entry.rewrite, layer)
    return {next(iter(entry.rewrite.modules.values())): entry}


def _huggingface(name: str, folder: Path) -> tuple[LoadedModel, dict[str, LayerEntry]]:
    model: Any = ZOO[name]().model
    model.save_pretrained(folder / "dense" / name)
    loaded = load_model(folder / "dense" / name)
    return loaded, _converted(loaded, _SITES[name])


def _own(folder: Path) -> tuple[LoadedModel, dict[str, LayerEntry]]:
    torch.save(make().state_dict(), folder / "m.pt")
    loaded = load_model(folder / "m.pt", factory="test_folder:make", example=(values(2, 16),))
    return loaded, _converted(loaded, LayerEntry(Rewrite("submodule", {"ffn": "inner"}), _PLAIN))


def _save(loaded: LoadedModel, layers: dict[str, LayerEntry], target: Path, force: bool = False) -> Path:
    return save_folder(loaded.model, layers, loaded, "seed = 0\n", _REPORT, target, force=force)


def _output(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        output = model(**batch) if isinstance(batch, dict) else model(*batch)
    found: Tensor = output if isinstance(output, Tensor) else output.logits
    return found


def _assert_same(again: nn.Module, loaded: LoadedModel) -> None:
    """Bit by bit the same weights. (At other places in memory a sum may take another order.)"""
    state = loaded.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    found, expected = _output(again, loaded.example), _output(loaded.model, loaded.example)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(_SITES))
def test_a_model_of_transformers_comes_back_whole(name: str, tmp_path: Path) -> None:
    loaded, layers = _huggingface(name, tmp_path)
    again = load_folder(_save(loaded, layers, tmp_path / "out"))
    assert type(again.model) is type(loaded.model)
    assert not again.model.training
    _assert_same(again.model, loaded)
    assert again.model.state_dict().keys() == loaded.model.state_dict().keys()
    assert [n for n, _ in again.model.named_parameters()] == [n for n, _ in loaded.model.named_parameters()]
    assert all(parameter.requires_grad for parameter in again.model.parameters())
    assert again.manifest.layers == layers


def test_tied_weights_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    loaded, layers = _huggingface("gpt2", tmp_path)
    again = load_folder(_save(loaded, layers, tmp_path / "out"))
    model: Any = again.model
    assert again.manifest.aliases == {"lm_head.weight": "transformer.wte.weight"}
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_model_of_a_factory_comes_back_with_it(tmp_path: Path) -> None:
    loaded, layers = _own(tmp_path)
    folder = _save(loaded, layers, tmp_path / "out")
    for factory in ("test_folder:make", make):
        again: Any = load_folder(folder, factory=factory).model
        _assert_same(again, loaded)
        assert again.last.weight is again.first.weight
    assert not (folder / "source").exists()
    with pytest.raises(InputError, match="with the factory test_folder:make: name a callable") as caught:
        load_folder(folder)
    assert "\n" not in str(caught.value)


def test_a_factory_of_another_model_is_refused(tmp_path: Path) -> None:
    loaded, layers = _own(tmp_path)
    folder = _save(loaded, layers, tmp_path / "out")
    with pytest.raises(InputError, match="no place for the MoE layer"):
        load_folder(folder, factory=lambda: nn.Linear(2, 2))

    def more() -> nn.Module:
        model = make()
        model.extra = nn.Linear(1, 1)
        return model

    with pytest.raises(InputError, match=r"missing: extra\.(bias|weight)"):
        load_folder(folder, factory=more)


def test_a_dtype_may_be_asked_for(tmp_path: Path) -> None:
    loaded, layers = _huggingface("llama", tmp_path)
    model = load_folder(_save(loaded, layers, tmp_path / "out"), dtype=torch.bfloat16).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for name, b in model.named_buffers() if "selection_bias" in name} == {torch.float32}


def test_what_was_loaded_can_be_saved_again_with_the_same_bytes(tmp_path: Path) -> None:
    loaded, layers = _huggingface("gpt2", tmp_path)
    first = _save(loaded, layers, tmp_path / "first")
    _save(loaded, layers, tmp_path / "second")
    again = replace(loaded, model=load_folder(first).model)
    _save(again, layers, tmp_path / "third")
    contents = [
        {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (first, tmp_path / "second", tmp_path / "third")
    ]
    assert contents[0] == contents[1] == contents[2]
    assert {path.stat().st_mode & 0o077 for path in first.iterdir() if path.is_file()} == {0o044 & ~_umask()}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.slow
def test_the_folder_says_nothing_of_the_machine(tmp_path: Path) -> None:
    loaded, layers = _huggingface("bert", tmp_path)
    folder = _save(loaded, layers, tmp_path / "out")
    assert sorted(p.name for p in folder.iterdir()) == [
        "moeify.json", "moeify.safetensors", "recipe.toml", "report.json", "source",
    ]  # fmt: skip
    for path in folder.rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report == {"layers": [{"path": "a", "loss": 0.5, "bound": None}], "name": "täglich"}


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1, "world": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    loaded, layers = _huggingface("llama", tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path / "dense" / "llama")
    tokenizer = load_model(tmp_path / "dense" / "llama").tokenizer
    folder = _save(replace(loaded, tokenizer=tokenizer), layers, tmp_path / "out")
    again = load_folder(folder).tokenizer
    assert again is not None
    assert again("hello world")["input_ids"] == [1, 2]
    assert str(tmp_path) not in (folder / "source" / "tokenizer_config.json").read_text()


def test_transformers_does_not_take_it_for_a_dense_model(tmp_path: Path) -> None:
    from transformers import AutoModel

    loaded, layers = _huggingface("llama", tmp_path)
    folder = _save(loaded, layers, tmp_path / "out")
    with pytest.raises((OSError, ValueError)):
        AutoModel.from_pretrained(folder, local_files_only=True)


def _break(name: str) -> Callable[[Path], object]:
    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return flip


def _edit(**changes: Any) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        data = json.loads((folder / "moeify.json").read_text())
        data["source"] |= changes.pop("source", {})
        data |= changes
        (folder / "moeify.json").write_text(json.dumps(data))

    return edit


def _cut(folder: Path) -> None:
    content = (folder / "moeify.safetensors").read_bytes()
    (folder / "moeify.safetensors").write_bytes(content[: len(content) // 2])


#: caption, what is done to the folder, what the message says
FAULTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("no weights", lambda f: (f / "moeify.safetensors").unlink(), "the file moeify.safetensors is missing"),
    ("cut weights", _cut, "the file moeify.safetensors is damaged"),
    ("a flipped bit in the weights", _break("moeify.safetensors"), "the file moeify.safetensors is damaged"),
    ("a flipped bit in the recipe", _break("recipe.toml"), "the file recipe.toml is damaged or was changed"),
    ("a changed config", _break("source/config.json"), r"the file source/config\.json is damaged"),
    ("no config", lambda f: (f / "source" / "config.json").unlink(), r"the file source/config\.json is missing"),
    ("no manifest", lambda f: (f / "moeify.json").unlink(), "not an output folder of moeify"),
    ("a layer left out", _edit(layers=[]), r"does not fit the LlamaForCausalLM \(missing: .*unexpected: "),
    ("an alias of nothing", _edit(aliases={"lm_head.bias": "nothing"}), "lm_head.bias is to be an alias of nothing"),
    ("a class of elsewhere", _edit(source={"model_class": "transformers.AutoTokenizer"}), "no model of transformers"),
    ("a class of a module", _edit(source={"model_class": "transformers.os.system"}), "no model of transformers"),
    ("a class of another package", _edit(source={"model_class": "os.system"}), "came as a os.system in memory"),
    (
        "another class",
        _edit(source={"model_class": "transformers.GPT2LMHeadModel"}),
        "not make a|no place for",
    ),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    return _save(*_huggingface("llama", folder), folder / "out")


@pytest.mark.parametrize(("spoil", "message"), [c[1:] for c in FAULTS], ids=[c[0] for c in FAULTS])
def test_a_spoilt_folder_is_one_line(spoil: Callable[[Path], object], message: str, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "out"))
    spoil(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_folder(folder)
    assert "\n" not in str(caught.value)


def test_a_factory_named_in_the_file_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, layers = _own(tmp_path)
    folder = _save(loaded, layers, tmp_path / "out")
    (tmp_path / "trap_module.py").write_text("raise SystemExit('sprung')")
    monkeypatch.chdir(tmp_path)
    _edit(source={"factory": "trap_module:make", "model_class": "trap_module.Model"})(folder)
    with pytest.raises(InputError, match="with the factory trap_module:make"):
        load_folder(folder)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    loaded, layers = _huggingface("llama", tmp_path)
    monkeypatch.setattr(folder_weights, "write_safetensors", full)
    with pytest.raises(OutputError, match=r"out: cannot be written: No space left"):
        _save(loaded, layers, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense"]


def test_the_dense_model_is_never_replaced_by_the_converted_one(tmp_path: Path) -> None:
    loaded, layers = _huggingface("llama", tmp_path)
    for place in (tmp_path / "dense" / "llama", tmp_path / "dense"):
        with pytest.raises(OutputError, match="holds the model that is being read"):
            _save(loaded, layers, place, force=True)
    assert (tmp_path / "dense" / "llama" / "config.json").is_file()


def test_what_is_no_tensor_with_values_is_named(tmp_path: Path) -> None:
    loaded, layers = _own(tmp_path)
    loaded.model.register_buffer("ghost", torch.empty(2, device="meta"))
    with pytest.raises(OutputError, match="ghost of Blocks is no tensor with values"):
        _save(loaded, layers, tmp_path / "out")


def test_views_of_one_memory_are_each_saved(tmp_path: Path) -> None:
    loaded, layers = _own(tmp_path)
    shared = torch.arange(12.0)
    for name, view in (("a", shared[:8]), ("b", shared[4:]), ("c", shared.view(3, 4).T)):
        loaded.model.register_buffer(name, view)
    folder = _save(loaded, layers, tmp_path / "out")
    state = read_safetensors(folder / "moeify.safetensors")
    assert torch.equal(state["b"], shared[4:])
    assert torch.equal(state["c"], shared.view(3, 4).T)


def test_extra_files_are_part_of_the_whole(tmp_path: Path) -> None:
    loaded, layers = _own(tmp_path)

    def also(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"graph")

    folder = save_folder(loaded.model, layers, loaded, "", {}, tmp_path / "out", force=False, also=also)
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match=r"the file model\.onnx is damaged"):
        load_folder(folder, factory=make)
