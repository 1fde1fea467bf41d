"""Programs of torch.export come in with their own inputs, convert, and come back from the folder."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import moeify
from converted import call, distance, main_output
from frontend.exported_traps import small, write_archive
from moeify.errors import InputError, UsageError
from moeify.frontend.load_model import load_model
from moeify.frontend.trace_state import tracing_state
from zoo import ZOO


class Fused(nn.Module):
    """SwiGLU with one matrix for gate and up, multiplied with as bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.randn(48, 8) / 3)
        self.down = nn.Parameter(torch.randn(24, 8) / 5)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = (x @ self.both.t()).chunk(2, dim=-1)
        return x + (nn.functional.silu(gate) * up) @ self.down


def _fused() -> tuple[nn.Module, tuple[Tensor, ...]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Fused().eval(), (torch.randn(2, 5, 8),)


def _zoo(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        zoo = ZOO[name]()
        return zoo.model.eval(), zoo.example

    return make


#: name -> model and example, feed-forward networks
MODELS: Mapping[str, tuple[Callable[[], tuple[nn.Module, Any]], int]] = {
    "small": (small, 2),
    "fused": (_fused, 1),
    "encoder-pre-gelu": (_zoo("encoder-pre-gelu"), 2),
    "llama": (_zoo("llama"), 2),
    "phi3": (_zoo("phi3"), 2),
    "gpt2": (_zoo("gpt2"), 2),
    "t5": (_zoo("t5"), 2),
}


def export(name: str, path: Path) -> tuple[nn.Module, Any]:
    """Writes the archive; gives the dense model and its example."""
    model, example = MODELS[name][0]()
    args, kwargs = (example, {}) if isinstance(example, tuple) else ((), example)
    with tracing_state(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, args, kwargs, strict=False), path)
    return model, example


def output(model: nn.Module, example: Any) -> Tensor:
    with torch.no_grad():
        return main_output(call(model, example))


@pytest.mark.parametrize("name", MODELS)
def test_a_program_converts_and_comes_back(name: str, tmp_path: Path) -> None:
    dense, example = export(name, tmp_path / "m.pt2")
    expected = output(dense, example)
    done = moeify.convert(tmp_path / "m.pt2", tmp_path / "out", recipe="random", experts=3, top_k=3)
    assert len(done.report.layers) == MODELS[name][1]
    assert distance(output(done.model, example), expected) < 1e-6
    again = moeify.load(tmp_path / "out")
    state = done.model.state_dict()
    assert {key: value.shape for key, value in again.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert distance(output(again, example), output(done.model, example)) < 1e-6


@pytest.mark.slow
def test_a_program_goes_the_whole_way(tmp_path: Path) -> None:
    from moeify import api

    write_archive(tmp_path / "m.pt2")
    done = moeify.convert(tmp_path / "m.pt2", tmp_path / "out", experts=4, top_k=4)
    assert any("m.pt2: an exported program is the graph of eval mode" in note for note in done.report.notes)
    data = [(torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(i)),) for i in range(2)]
    (score,) = [s for s in api.evaluate(tmp_path / "out", data, dense=tmp_path / "m.pt2").scores if s.name == "converted"]
    assert score.divergence is not None
    assert score.divergence.relative_error < 1e-6
    report = api.export(tmp_path / "out", tmp_path / "out.onnx")
    assert len(report.moe_layers) == 2
    assert [port.dims for port in report.inputs] == [("batch", "sequence", 8)]
    assert len(api.inspect(tmp_path / "out").rows) == len(api.inspect(tmp_path / "m.pt2").rows) == 2


def test_the_folder_holds_no_weight_twice_and_no_trace_of_its_author(tmp_path: Path) -> None:
    write_archive(tmp_path / "m.pt2")
    for name in ("one", "two"):
        moeify.convert(tmp_path / "m.pt2", tmp_path / name, experts=4, top_k=4)
    content = (tmp_path / "one" / "source" / "program.pt2").read_bytes()
    assert content == (tmp_path / "two" / "source" / "program.pt2").read_bytes()
    assert small()[0].state_dict()["blocks.0.0.weight"].numpy().tobytes() not in content
    assert b"exported_traps.py" in (tmp_path / "m.pt2").read_bytes()
    assert b"exported_traps.py" not in content


def test_gradients_pass_and_training_mode_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path / "m.pt2")
    model: nn.Module = moeify.convert(tmp_path / "m.pt2", experts=4, top_k=2).model
    model(*small()[1]).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name.endswith((".up", ".down")))
    with pytest.raises(NotImplementedError, match="no training mode"):
        model.train()
    assert model.eval() is model


def test_a_given_example_is_taken_before_the_archives_own(tmp_path: Path) -> None:
    write_archive(tmp_path / "m.pt2")
    loaded = load_model(tmp_path / "m.pt2", example=(torch.ones(3, 4, 8),))
    assert isinstance(loaded.example, tuple)
    assert loaded.example[0].shape == (3, 4, 8)
    assert loaded.source.kind == "exported-program"
    assert set(loaded.source.digests) == {"m.pt2"}


def test_half_precision_stays_and_others_are_refused(tmp_path: Path) -> None:
    model = small()[0].bfloat16()
    model.scale = model.get_buffer("scale").bfloat16()
    torch.export.save(torch.export.export(nn.Sequential(model.get_submodule("blocks.0")), (torch.ones(2, 8).bfloat16(),)),
                      tmp_path / "m.pt2")  # fmt: skip
    assert {p.dtype for p in load_model(tmp_path / "m.pt2").model.parameters()} == {torch.bfloat16}
    write_archive(tmp_path / "fp32.pt2")
    with pytest.raises(InputError, match="is a program in float32 and cannot be turned into bfloat16"):
        load_model(tmp_path / "fp32.pt2", dtype=torch.bfloat16)


def test_a_factory_is_of_no_use(tmp_path: Path) -> None:
    write_archive(tmp_path / "m.pt2")
    with pytest.raises(UsageError, match="says itself which model it is"):
        load_model(tmp_path / "m.pt2", factory=lambda: small()[0])


def test_two_kinds_of_arguments_are_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, *, y: Tensor) -> Tensor:
            return x + y

    torch.export.save(torch.export.export(Two(), (torch.ones(2),), {"y": torch.ones(2)}), tmp_path / "m.pt2")
    with pytest.raises(InputError, match="positional and keyword arguments together"):
        load_model(tmp_path / "m.pt2")


def test_an_archive_cut_off_anywhere_or_with_a_flipped_bit_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    write_archive(path)
    content = path.read_bytes()
    damaged = [content[:end] for end in range(1, len(content), len(content) // 19)]
    with zipfile.ZipFile(path) as archive:
        inside = [content.index(data) + len(data) // 2 for name in archive.namelist() if len(data := archive.read(name)) > 8]
    for place in inside:
        flipped = bytearray(content)
        flipped[place] ^= 1
        damaged.append(bytes(flipped))
    for spoilt in damaged:
        path.write_bytes(spoilt)
        with pytest.raises(InputError) as caught:
            load_model(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_garbage_in_place_of_the_program_is_one_line(tmp_path: Path) -> None:
    program, weights = "m/models/model.json", "m/data/weights/model_weights_config.json"
    for member in (program, weights):
        for content in (b"", b"{", b"[]", b"{}", b'{"graph_module": 3}', b"\xff", b"[" * 99_999):
            write_archive(tmp_path / "m.pt2", lambda members, m=member, c=content: members.update({m: c}))  # type: ignore[misc]
            with pytest.raises(InputError, match=r"m\.pt2: ") as caught:
                load_model(tmp_path / "m.pt2")
            assert "\n" not in str(caught.value)
