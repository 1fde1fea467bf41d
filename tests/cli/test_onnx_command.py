"""The command on a dense ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command_line import Outcome
from onnx_files import dense_onnx

Run = Callable[[str], Outcome]


@pytest.mark.slow
def test_inspect_plan_convert_evaluate_and_export(moeify: Run, tmp_path: Path) -> None:
    dense_onnx(tmp_path / "dense.onnx")
    found = moeify("inspect dense.onnx --json")
    assert found.code == 0, found.err
    assert [(row["activation"], row["rewrite"]) for row in found.data["rows"]] == [("relu", "graph")]
    planned = moeify("convert dense.onnx --dry-run --experts 4 --top-k 2 --json")
    assert planned.code == 0, planned.err
    assert [layer["experts"] for layer in planned.data["layers"]] == [4]
    done = moeify("convert dense.onnx -o out --experts 4 --top-k 2")
    assert done.code == 0, done.err
    assert "converted 1 feed-forward networks" in done.out
    shown = moeify("inspect out")
    assert "converted model: 1 MoE layers" in shown.out
    exported = moeify("export out -o small.onnx --precision int8")
    assert exported.code == 0, exported.err
    assert (tmp_path / "small.onnx").is_file()


def test_what_cannot_be_is_one_line_and_leaves_nothing(moeify: Run, tmp_path: Path) -> None:
    dense_onnx(tmp_path / "dense.onnx")
    refused = moeify("convert dense.onnx -o out --dtype bf16")
    assert refused.code == 2
    assert refused.err.startswith("moeify: error: an ONNX file is converted in fp32, not in bf16")
    assert not (tmp_path / "out").exists()
