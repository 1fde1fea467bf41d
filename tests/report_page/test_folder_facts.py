"""What report.json says is taken where it can be true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import moeify
from moeify.report_page.folder_facts import folder_facts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("facts") / "out"
    ffn = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    moeify.convert(ffn, place, experts=4, top_k=2, example=(torch.ones(2, 4),))
    return place


@pytest.mark.parametrize("value", [10**400, -1.0, -(10**400), float("inf"), float("nan"), True, "0.1", None])
def test_an_error_or_a_budget_that_cannot_be_is_none(value: Any, folder: Path) -> None:
    path = folder / "report.json"
    report = json.loads(path.read_text("utf-8"))
    report["budget"], report["verdict"] = value, " "
    (layer,) = report["layers"]
    layer["nulls"] = {"errors": {"converted": value, "static-mask": 0.25}}
    path.write_text(json.dumps(report), "utf-8")
    facts = folder_facts(folder)
    assert (facts.budget, facts.verdict) == (None, None)
    assert facts.layers[0].errors == {"static-mask": 0.25}
