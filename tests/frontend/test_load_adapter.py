"""LoRA adapters: merged into their model where it is on disk, else refused with the command that merges them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import moeify
from converted import distance, main_output
from frontend.pickle_traps import CANARY
from frontend.tiny_adapter import adapt
from moeify.errors import InputError, MissingExtraError
from moeify.frontend.load_model import load_model
from zoo import ZOO, ids


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    model: Any = ZOO["llama"]().model
    model.save_pretrained(folder / "base")
    adapt(folder / "base", folder / "adapter")
    return folder


@pytest.fixture
def here(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of base and adapter, in the current folder; the adapter's config names the base by its name alone."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    _config(tmp_path / "adapter", base_model_name_or_path="base")
    return tmp_path


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def output(model: Any) -> Tensor:
    with torch.no_grad():
        return main_output(model(input_ids=ids()))


#: caption, options of the adapter
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("plain", {}),
    ("rank-stabilised, other ranks", {"use_rslora": True, "rank_pattern": {"up_proj": 2}, "alpha_pattern": {"up_proj": 3}}),
    ("DoRA", {"use_dora": True}),
    ("some layers, by a pattern", {"target_modules": r".*\.1\.mlp\.(up|down)_proj"}),
    ("with a head of its own", {"modules_to_save": ["lm_head"]}),
    ("on the embedding", {"target_modules": ["embed_tokens", "q_proj"]}),
]


@pytest.mark.parametrize("options", [c[1] for c in KINDS], ids=[c[0] for c in KINDS])
def test_an_adapter_is_merged(options: dict[str, Any], saved: Path, tmp_path: Path) -> None:
    merged = adapt(saved / "base", tmp_path / "adapter", **options)
    loaded = load_model(tmp_path / "adapter")
    assert type(loaded.model) is type(merged)
    assert distance(output(loaded.model), output(merged)) < 1e-6
    assert distance(output(loaded.model), output(load_model(saved / "base").model)) > 1e-3
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.model.state_dict().keys() == merged.state_dict().keys()
    assert loaded.notes == ("the adapter adapter was merged into base",)
    assert set(loaded.source.digests) == {
        "config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


@pytest.mark.slow
def test_an_adapter_goes_the_whole_way_without_a_network(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    expected = output(load_model("adapter").model)
    done = moeify.convert("adapter", "out", recipe="random", experts=4, top_k=4)
    assert distance(output(done.model), expected) < 1e-6
    assert distance(output(moeify.load("out")), expected) < 1e-6


def _state(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / "adapter_model.safetensors")
    change(state)
    save_file(state, folder / "adapter_model.safetensors")


def _first(state: dict[str, Tensor]) -> str:
    return sorted(state)[0]


_COMMAND = (
    "python -c \"from peft import AutoPeftModelForCausalLM as M; M.from_pretrained('adapter').merge_and_unload()"
    ".save_pretrained('MERGED')\""
)

#: caption, what is done to the adapter, what the message says (each must occur)
FAULTS: list[tuple[str, Callable[[Path], object], tuple[str, ...]]] = [
    ("a base that is not on disk", lambda f: _config(f, base_model_name_or_path="meta/big"),
     ("meta/big", "nothing is downloaded", _COMMAND)),
    ("no base", lambda f: _config(f, base_model_name_or_path=None), ("base_model_name_or_path",)),
    ("a base that is an adapter", lambda f: shutil.copy(f / "adapter_config.json", "base"), ("base", _COMMAND)),
    ("a prefix for an adapter", lambda f: _config(f, peft_type="PREFIX_TUNING"), ("'PREFIX_TUNING'", "LoRA alone", _COMMAND)),
    ("a beginning that changed the model", lambda f: _config(f, init_lora_weights="pissa"), ("'pissa'", _COMMAND)),
    ("layers that are repeated", lambda f: _config(f, layer_replication=[[0, 2]]), ("layer_replication", _COMMAND)),
    ("an option that nobody knows", lambda f: _config(f, new_thing=3), ("new_thing", _COMMAND)),
    ("a module to import", lambda f: _config(f, megatron_config={"a": 1}, megatron_core="trap_module"), ("megatron_config",)),
    ("no weights", lambda f: (f / "adapter_model.safetensors").unlink(), ("adapter_model.safetensors", "bin", _COMMAND)),
    ("weights cut off", lambda f: os.truncate(f / "adapter_model.safetensors", 900), ("no whole safetensors file",)),
    ("a tensor too few", lambda f: _state(f, lambda s: s.pop(_first(s))), ("missing: base_model.model", "lora_A")),
    ("a tensor too many", lambda f: _state(f, lambda s: s.update(spare=torch.ones(1))), ("unexpected: spare",)),
    ("a tensor of another shape", lambda f: _state(f, lambda s: s.update({_first(s): torch.ones(3, 5)})),
     ("cannot be merged into base", "size mismatch")),
    ("NaN", lambda f: _state(f, lambda s: s[_first(s)].fill_(float("nan"))), ("cannot be merged into base", "NaN")),
    ("modules of another model", lambda f: _config(f, target_modules=["c_fc"]), ("c_fc", "is it the model")),
    ("a rank of nothing", lambda f: _config(f, r=0), ("cannot be merged into base", "r` should be")),
    ("a config that is no JSON", lambda f: (f / "adapter_config.json").write_text("{"), ("cannot be read as JSON",)),
    ("a whole model beside it", lambda f: shutil.copy("base/model.safetensors", f), ("a whole model and an adapter",)),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), [c[1:] for c in FAULTS], ids=[c[0] for c in FAULTS])
def test_a_spoilt_adapter_is_one_line(spoil: Callable[[Path], object], words: tuple[str, ...], here: Path) -> None:
    (here / "trap_module.py").write_text(f"import os\nos.mkdir({CANARY!r})\n")
    spoil(Path("adapter"))
    with pytest.raises(InputError) as caught:
        load_model("adapter")
    message = str(caught.value)
    assert message.startswith("adapter")
    assert "\n" not in message
    assert not [word for word in words if word not in message], message
    assert not Path(CANARY).exists()


def test_without_peft_the_extra_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"a LoRA adapter needs the package peft: run pip install 'moeify\[peft\]'"):
        load_model("adapter")


def test_the_command_in_the_message_does_what_it_says(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model: Any = peft.AutoPeftModelForCausalLM.from_pretrained("adapter")
    model.merge_and_unload().save_pretrained("MERGED")
    assert distance(output(load_model("MERGED").model), output(load_model("adapter").model)) < 1e-6


def test_adapters_in_memory_are_refused_with_the_remedy() -> None:
    wrapped = peft.get_peft_model(ZOO["llama"]().model, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InputError, match=r"carries adapters of PEFT .*model = model\.merge_and_unload\(\)"):
        load_model(wrapped)
