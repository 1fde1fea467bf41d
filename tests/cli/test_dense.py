"""`moeify dense`: back to a dense model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cli.command_line import Outcome
from cli.tiny_models import TINY, stack

Run = Callable[[str], Outcome]


@pytest.fixture
def split(moeify: Run) -> None:
    assert moeify(f"convert model.pt -o out {TINY} --experts 4 --top-k 2 --quiet").code == 0


@pytest.fixture
def copied(moeify: Run) -> None:
    assert moeify(f"convert model.pt -o out {TINY} --recipe upcycle --experts 3 --quiet").code == 0


@pytest.mark.usefixtures("split")
def test_a_split_model_becomes_dense_again(moeify: Run, tmp_path: Path) -> None:
    done = moeify(f"dense out -o dense.safetensors {TINY} --data rows.pt")
    assert (done.code, done.err) == (0, "")
    head, first, second, whole, last = done.out.splitlines()
    assert head.split()[:2] == ["path", "experts"]
    assert [row.split()[:2] for row in (first, second)] == [["0", "4"], ["1", "4"]]
    assert "the layer with all experts on" in first
    assert whole.startswith("output of the dense model: 0.")
    assert last == "2 layers are dense again, by concatenate: dense.safetensors"
    assert load_file(tmp_path / "dense.safetensors").keys() == stack().state_dict().keys()
    again = moeify(f"convert dense.safetensors -o again {TINY} --experts 4 --top-k 4 --json")
    assert (again.code, again.err) == (0, "")


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("by", ["mean", "svd", "svd --rank 8"])
def test_copies_are_merged(by: str, moeify: Run) -> None:
    done = moeify(f"dense out -o dense.safetensors {TINY} --by {by} --data rows.pt --json")
    assert (done.code, done.err) == (0, "")
    assert done.data["by"] == by.split()[0]
    exact = by != "svd"  # of equal copies of rank 8
    for layer in done.data["layers"]:
        assert (layer["weight_distance"] < 1e-5) == exact
        assert (layer["output_distance"] < 1e-5) == exact
    assert (done.data["divergence"]["relative_error"] < 1e-5) == exact


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            "-o dense.safetensors",
            2,
            "0: cannot be made dense by concatenate: its experts hold 96 neurons",
        ),
        ("-o dense.safetensors --by median", 2, "experts cannot be gathered by 'median': did you mean 'mean'?"),
        ("-o dense.safetensors --by mean --rank 3", 2, "--rank 3 is for --by svd, not for --by mean: leave it out"),
        ("-o dense.pt --by mean", 2, "dense.pt: a torch.nn.modules.container.Sequential becomes a state_dict in a safetensors"),
        ("-o model.pt.safetensors --by mean --data absent.pt", 1, "absent.pt"),
    ],
)
def test_what_does_not_fit_is_one_line_and_writes_nothing(
    options: str, code: int, message: str, moeify: Run, tmp_path: Path
) -> None:
    done = moeify(f"dense out {options} {TINY}")
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
    assert message in done.err
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.usefixtures("copied")
def test_a_file_is_replaced_by_force_alone(moeify: Run) -> None:
    line = f"dense out -o dense.safetensors {TINY} --by mean --quiet"
    assert moeify(line).code == 0
    assert "exists already" in moeify(line).err
    forced = moeify(f"{line} --force")
    assert (forced.code, forced.out, forced.err) == (0, "", "")
