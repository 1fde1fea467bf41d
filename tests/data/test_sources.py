"""Tensor files, callables and batches in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from data import batches_for_tests
from moeify.data import batch_rows, batch_tokens, open_data
from moeify.data.importable import importable
from moeify.ir.model_graph import Batch

IDS = torch.arange(30).reshape(10, 3)
FLOATS = torch.linspace(0, 1, 40).reshape(10, 4)


def stored_rows(source: Any, key: str | int, **options: Any) -> Tensor:
    found = [batch[key] for batch in open_data(source, **options)]  # type: ignore[index]  # the key fits the kind of batch
    return torch.cat(found)


def save_npz(value: dict[str, Tensor], path: Path) -> None:
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in value.items()}
    np.savez(path, **arrays)


def save_legacy(value: dict[str, Tensor], path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


SAVERS: dict[str, Callable[[dict[str, Tensor], Path], Any]] = {
    "a.pt": torch.save, "old.pt": save_legacy, "a.npz": save_npz, "a.safetensors": save_file,
    "suffix-is-wrong.dat": torch.save,
    "npz-inside.bin": lambda value, path: save_npz(value, path.open("wb")),  # type: ignore[arg-type]  # NumPy takes open files
}  # fmt: skip


@pytest.mark.parametrize("name", SAVERS)
def test_named_tensors_of_every_format(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    SAVERS[name]({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}, path)
    example = {"input_ids": torch.ones(1, 5, dtype=torch.int64), "attention_mask": torch.ones(1, 5, dtype=torch.int64)}
    data = open_data(path, example=example, batch=4)
    assert [batch_rows(batch) for batch in data] == [4, 4, 2]
    assert torch.equal(stored_rows(path, "input_ids", example=example), IDS)
    assert data.describe()["tokens"] == 30
    assert open_data(path).describe()["digest"] == data.describe()["digest"]


def test_positions_are_matched_by_number_and_by_input_name(tmp_path: Path) -> None:
    example = (torch.ones(1, 3, dtype=torch.int32), torch.ones(1, 4))
    torch.save((IDS, FLOATS), tmp_path / "tuple.pt")
    np.savez(tmp_path / "numbered.npz", IDS.numpy(), FLOATS.double().numpy())
    save_file({"x": FLOATS, "ids": IDS}, tmp_path / "named.safetensors")
    for name in ("tuple.pt", "numbered.npz", "named.safetensors"):
        ids = stored_rows(tmp_path / name, 0, example=example, input_names=("ids", "x"))
        assert torch.equal(ids, IDS.int())
        assert ids.dtype == torch.int32
        floats = stored_rows(tmp_path / name, 1, example=example, input_names=("ids", "x"))
        assert torch.equal(floats, FLOATS)


@pytest.mark.parametrize("example", [(torch.ones(1, 4),), {"pixels": torch.ones(2, 4)}], ids=["position", "name"])
def test_one_tensor_goes_to_the_one_input(example: Batch, tmp_path: Path) -> None:
    torch.save(FLOATS, tmp_path / "one.pt")
    np.save(tmp_path / "one.npy", FLOATS.numpy())
    key = 0 if isinstance(example, tuple) else "pixels"
    for name in ("one.pt", "one.npy"):
        assert torch.equal(stored_rows(tmp_path / name, key, example=example), FLOATS)


def test_tensors_stop_behind_the_batch_that_fills_the_tokens(tmp_path: Path) -> None:
    torch.save({"input_ids": IDS}, tmp_path / "a.pt")
    assert stored_rows(tmp_path / "a.pt", "input_ids", batch=2, tokens=7).shape == (4, 3)


def test_a_callable_is_called_anew_for_each_iteration() -> None:
    batches_for_tests.calls.clear()
    data = open_data("data.batches_for_tests:ids", example={"input_ids": torch.ones(1, 2, dtype=torch.int64)})
    assert not batches_for_tests.calls
    first, second = list(data), list(data)
    assert len(batches_for_tests.calls) == 2
    assert [batch_tokens(batch) for batch in first] == [batch_tokens(batch) for batch in second] == [8, 8]
    assert data.describe()["digest"] is None
    assert open_data(batches_for_tests.ids).kind == "callable"


def test_a_module_of_the_current_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lying_here.py").write_text("class Inner:\n    value = 5\n")
    monkeypatch.chdir(tmp_path)
    assert importable("lying_here:Inner.value", "the data") == 5


def test_batches_in_memory_keep_their_form() -> None:
    batches: list[Batch] = [{"input_ids": IDS[:2], "use_cache": False}, {"input_ids": IDS[2:]}]
    data = open_data(batches)
    assert list(map(batch_rows, data)) == list(map(batch_rows, data)) == [2, 8]
    assert open_data([IDS]).describe()["digest"] == open_data([(IDS,)]).describe()["digest"]
    assert open_data([IDS]).describe()["digest"] != open_data([IDS + 1]).describe()["digest"]


def test_a_generator_is_kept_so_that_it_can_be_read_again() -> None:
    data = open_data(batch for batch in [(IDS,), (IDS,)])
    assert len(list(data)) == len(list(data)) == 2


def test_constants_of_the_example_are_added() -> None:
    example = {"input_ids": torch.ones(1, 3, dtype=torch.int64), "use_cache": False}
    assert all(
        isinstance(batch, dict) and batch["use_cache"] is False for batch in open_data([{"input_ids": IDS}], example=example)
    )


def test_masked_tokens_are_not_counted() -> None:
    mask = torch.ones_like(IDS)
    mask[0, 1:] = 0
    assert batch_tokens({"input_ids": IDS, "attention_mask": mask}) == 28
    assert batch_tokens((IDS,)) == 30
    assert batch_tokens((FLOATS,)) == 10
