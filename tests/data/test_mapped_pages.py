"""Pages of mapped files are given back; nothing else is, and no value changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moeify.data.mapped_pages import let_go, read_module_by_module

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell pages of files apart")

#: Numbers of a tensor of 4 MiB.
MANY = 1 << 20


def resident(tensor: Tensor) -> int:
    """Bytes of memory that the mapping which the tensor lies in takes."""
    at, inside = tensor.data_ptr(), False
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(end, 16) for end in first.split("-"))
            inside = low <= at < high
        elif inside and first == "Rss:":
            return int(line.split()[1]) * 1024
    raise AssertionError("no mapping holds the tensor")


@pytest.fixture
def mapped(tmp_path: Path) -> dict[str, Tensor]:
    """Two tensors in one mapped file."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(1024, 1024, generator=generator) for name in ("a", "b")}
    save_file(tensors, tmp_path / "file.safetensors")
    return dict(load_file(tmp_path / "file.safetensors"))


def test_what_lies_in_a_file_is_given_back_and_read_again(mapped: dict[str, Tensor]) -> None:
    a, b = mapped.values()
    before = (float(a.double().sum()), float(b.double().sum()))
    assert resident(a) > 7 * MANY
    let_go((a,))
    assert 3 * MANY < resident(a) < 5 * MANY, "the other tensor of the file stays"
    let_go((a, None, b))
    assert resident(a) < MANY
    assert (float(a.double().sum()), float(b.double().sum())) == before


@pytest.mark.parametrize(
    "view", [lambda a: a.T, lambda a: a[100:900], lambda a: a[:, :512]], ids=["transpose", "rows", "columns"]
)
def test_views_are_of_their_file_too(view: object, mapped: dict[str, Tensor]) -> None:
    assert callable(view)
    a = mapped["a"]
    total = float(a.double().sum())
    let_go((mapped["b"],))
    held = resident(a)
    let_go((view(a),))
    assert resident(a) < held - 2 * MANY
    assert float(a.double().sum()) == total


def test_ordinary_memory_keeps_its_values() -> None:
    tensor = torch.full((MANY,), 7.0)
    let_go((tensor, tensor[10:-10], nn.Parameter(tensor)))
    assert bool((tensor == 7.0).all())


def test_what_was_written_to_stays(mapped: dict[str, Tensor]) -> None:
    a = mapped["a"]
    a[500, 500] = 1234.5
    let_go((a,))
    assert float(a[500, 500]) == 1234.5


#: Stand beside a tensor that is let go of, and hold no pages that could be.
WITHOUT_PAGES: dict[str, Callable[[Tensor], object]] = {
    "nothing": lambda mapped: None,
    "text": lambda mapped: "text",
    "on the meta device": lambda mapped: torch.empty(MANY, device="meta"),
    "without numbers": lambda mapped: mapped.new_empty(0, 1 << 30),
    "a row of the file": lambda mapped: mapped[:1],
    "sparse": lambda mapped: torch.eye(1024).to_sparse(),
}


@pytest.mark.parametrize("caption", WITHOUT_PAGES)
def test_what_has_no_pages_is_passed_over(caption: str, mapped: dict[str, Tensor]) -> None:
    a, b = mapped.values()
    total = float(a.double().sum()) + float(b.double().sum())
    other = WITHOUT_PAGES[caption](b)
    held = resident(a)
    let_go((other,))
    assert resident(a) == held, "it has no pages to give back"
    let_go((other, a))
    assert resident(a) < held - 3 * MANY, "what comes after it is given back"
    assert float(a.double().sum()) + float(b.double().sum()) == total


def test_each_module_gives_back_its_own_once_it_has_run(mapped: dict[str, Tensor]) -> None:
    model = nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.Identity(), nn.Linear(1024, 1024, bias=False))
    model.load_state_dict({"0.weight": mapped["a"], "2.weight": mapped["b"]}, assign=True)
    let_go(model.parameters())
    held: list[int] = []
    watch = model[1].register_forward_hook(lambda *_: held.append(resident(mapped["a"])))
    with torch.no_grad(), read_module_by_module(model):
        y = model(torch.ones(2, 1024))
        held.append(resident(mapped["a"]))
    watch.remove()
    assert max(held) < MANY
    assert torch.allclose(y, torch.ones(2, 1024) @ mapped["a"].T @ mapped["b"].T, atol=1e-2)
    assert not any(module._forward_hooks for module in model.modules())
