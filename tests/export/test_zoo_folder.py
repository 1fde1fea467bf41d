"""Converted models of the zoo come back from their folders as they were saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from converted import call, converted, distance, main_output
from moeify.api import load, save
from moeify.export.manifest import read_manifest
from moeify.pipeline.report import Report
from zoo import WITH_SITES, ZOO

_REPORT = Report((), (), (), (), {})

#: One for each way of rewriting, and 1x1 convolutions in three forms.
QUICK = ("llama", "bert", "inline", "bare-block", "squeezebert", "conv-1d", "conv-2d")


def _comes_back(name: str, folder: Path) -> None:
    zoo, graph = converted(name, top_k=2)
    expected = main_output(zoo.run())
    save(graph, folder, report=_REPORT)
    own = not type(zoo.model).__module__.startswith("transformers.")
    found = load(folder, factory=(lambda: ZOO[name]().model) if own else None)
    assert type(found) is type(zoo.model)
    saved = zoo.model.state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in found.state_dict().items())
    with torch.no_grad():  # other places in memory: sums may take another order
        assert distance(main_output(call(found, zoo.example)), expected) < 1e-6


@pytest.mark.parametrize("name", QUICK)
def test_comes_back(name: str, tmp_path: Path) -> None:
    _comes_back(name, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WITH_SITES if name not in QUICK])
def test_every_other_comes_back(name: str, tmp_path: Path) -> None:
    _comes_back(name, tmp_path / "out")


@pytest.mark.parametrize(("name", "channels"), [("inline", False), ("conv-1d", True)])
def test_only_convolutions_say_that_their_features_stand_in_dim_1(name: str, channels: bool, tmp_path: Path) -> None:
    save(converted(name)[1], tmp_path / "out", report=_REPORT)
    assert ("channels" in (tmp_path / "out" / "moeify.json").read_text()) is channels
    assert {entry.rewrite.channels for entry in read_manifest(tmp_path / "out").layers.values()} == {channels}
