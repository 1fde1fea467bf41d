"""Weights are mapped from their files, not copied: what no one reads takes no memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import moeify
from cli.tiny_models import example, stack
from moeify.frontend.load_model import load_model
from zoo import ZOO

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps, which other systems do not have")


def copied(model: nn.Module, file: Path) -> list[str]:
    """The parameters whose memory is not the file's."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text("utf-8").splitlines()]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines if line[-1] == str(file.resolve())]
    return [n for n, p in model.named_parameters() if not any(low <= p.data_ptr() < high for low, high in spans)]


def test_a_hugging_face_folder_is_mapped(tmp_path: Path) -> None:
    model: Any = ZOO["llama"]().model
    model.save_pretrained(tmp_path)
    assert copied(load_model(tmp_path).model, tmp_path / "model.safetensors") == []
    assert copied(load_model(tmp_path, dtype=torch.bfloat16).model, tmp_path / "model.safetensors") != []


def test_a_pickled_module_and_a_converted_folder_are_mapped(tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    torch.save(wide, tmp_path / "model.pt")
    assert copied(load_model(tmp_path / "model.pt").model, tmp_path / "model.pt") == []
    moeify.convert(stack(), tmp_path / "out", example=example(), experts=4)
    again = moeify.load(tmp_path / "out", factory=stack)
    assert copied(again, tmp_path / "out" / "moeify.safetensors") == []
