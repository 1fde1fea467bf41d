"""What cannot be split is said in one line, before a model is read or Ray is started."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import moeify as package
from cli.command_line import Outcome
from cli.tiny_models import deep_stack, example, stack
from moeify.errors import ConversionError, InputError, MoeifyError, UsageError
from moeify.frontend.load_model import load_model
from moeify.splice.eager_host import EagerHost
from moeify.workers import model_source
from moeify.workers.model_source import ModelSource, graph_digest
from onnx_files import dense_onnx

Run = Callable[[str], Outcome]

LEAVE = "leave out --workers and --cluster"
LINES = {
    "--workers 0": "'0' is not a whole number from 1",
    "--workers 2 --cluster auto": "--workers 2 are processes on this machine, --cluster auto has its own: give one of them",
    "--workers 2 --calibrate absent.txt": (
        "layers of recipe 'emoe' wait for each other, as each is calibrated on what the converted ones before it give: let them"
        f" go by the dense model with --set each-layer.prefix=dense, or {LEAVE}"
    ),
    "--workers 2 --device cuda": f"workers compute on the CPU: leave out --device cuda, or {LEAVE}",
}


@pytest.mark.parametrize("options", LINES)
def test_the_command_refuses(options: str, moeify: Run) -> None:
    done = moeify(f"convert absent.pt -o out {options}")
    assert done.code == 2
    assert LINES[options] in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("m.pt", {"workers": 0}, "workers is 0: choose 1 or more"),
        (stack(), {"workers": 2}, "workers read the model themselves, and a module in memory is in no file: give its path, or"),
        ("m.pt", {"workers": 2, "factory": stack}, "workers build the module themselves: give the factory by its name"),
    ],
    ids=["none", "in memory", "a callable"],
)
def test_python_refuses(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        package.convert(source, **options)
    assert str(error.value).startswith(message)


def test_an_onnx_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="an ONNX file is converted by one process: leave out --workers"):
        package.convert(dense_onnx(tmp_path / "dense.onnx"), tmp_path / "out", workers=2)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else found(name, *rest))
    with pytest.raises(MoeifyError) as error:
        package.convert("absent.pt", "out", workers=2)
    wanted = "a conversion by several workers (--workers, --cluster) needs the package ray: run pip install 'moeify[ray]'"
    assert str(error.value) == wanted


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_does_not_answer_is_one_line(scheme: str, moeify: Run) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{free.getsockname()[1]}"  # bound, but nobody listens
        done = moeify(f"convert absent.pt -o out --cluster {address}")
    assert done.code == InputError.exit_code
    assert done.err.startswith(f"moeify: error: the cluster {address} cannot be reached: ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("address", ["nowhere", "host:port", "http://host:80", ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(UsageError) as error:
        package.convert("absent.pt", "out", cluster=address)
    assert str(error.value) == f"cluster is {address!r}: give auto, HOST:PORT or ray://HOST:PORT"


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """Makes the source of a small model, as a worker gets it; what is given replaces what is right."""
    torch.save(deep_stack().state_dict(), tmp_path / "deep.pt")
    name = "cli.tiny_models:deep_stack"
    host = EagerHost(load_model(tmp_path / "deep.pt", factory=name, example=example()))
    threads = torch.get_num_threads()

    def make(**other: Any) -> ModelSource:
        right: dict[str, Any] = {
            "path": tmp_path / "deep.pt", "factory": name, "example": example(), "dtype": torch.float32, "allow_pickle": False,
            "info": host.loaded.source, "graph": graph_digest(host.traced), "versions": {"torch": "1"},
        }  # fmt: skip
        return ModelSource(**(right | other))

    yield make
    model_source._opened.clear()
    torch.set_num_threads(threads)


def test_a_worker_reads_the_model_once(source: Any) -> None:
    host = source().opened({"torch": "1"})
    assert source().opened({"torch": "1"}) is host
    assert torch.get_num_threads() == 1
    assert all(torch.equal(a, b) for a, b in zip(host.model.state_dict().values(), deep_stack().state_dict().values()))


def test_a_worker_refuses_what_is_not_the_same(source: Any, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"has other packages \(torch 2 instead of 1\): results would not be the same"):
        source().opened({"torch": "2"})
    with pytest.raises(ConversionError, match="has another trace of the model"):
        source(graph="other").opened({"torch": "1"})
    with pytest.raises(InputError, match=r"cannot read the model, which must lie at the same path on every machine: .*absent"):
        source(path=tmp_path / "absent.pt").opened({"torch": "1"})
    torch.save(stack().state_dict() | deep_stack().state_dict() | {"4.up.bias": torch.zeros(32)}, tmp_path / "deep.pt")
    with pytest.raises(ConversionError, match=r"has another model at .*deep\.pt"):
        source().opened({"torch": "1"})
