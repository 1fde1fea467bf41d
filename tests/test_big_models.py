"""A conversion that streams gives the bytes of one that keeps everything in memory, and takes the memory of a layer."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import moeify
from benchmarks.streaming import Shape, killed, measured, write_ids, write_llama
from cli.test_resume import contents
from data.test_mapped_pages import resident
from moeify.api.models import open_outline
from moeify.api.outlook import fit
from moeify.api.planning import registry
from moeify.data import mapped_pages
from moeify.errors import UsageError
from moeify.export import folder_weights
from moeify.pipeline.plan import Plan
from moeify.pipeline.recipe import load_recipe
from moeify.splice import eager_host

TINY = Shape(hidden=64, intermediate=192, layers=3, vocabulary=300, heads=4)
OPTIONS = {"experts": 4, "top_k": 2, "dtype": "bf16", "tokens": None}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    write_llama(folder, TINY)
    write_ids(folder / "ids.pt", TINY, 512)
    return folder


def written(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch, *, streamed: bool, **options: Any) -> dict[str, bytes]:
    """The files of a conversion in which every tensor, however small, is let go of, or none is."""
    with monkeypatch.context() as patch:
        patch.setattr(mapped_pages, "LEAST", 1 if streamed else 1 << 62)
        patch.setattr(folder_weights, "SHARD", 100_000)
        if not streamed:
            patch.setattr(eager_host, "shelved", lambda layer, path, folder: layer)
        moeify.convert(source, output, **{**OPTIONS, **options})
    return contents(output)


CONVERSIONS: dict[str, dict[str, Any]] = {
    "by the weights alone": {},
    "on the converted prefix": {"recipe": "markers", "tokens": 256},
    "on the dense prefix": {"recipe": "markers", "tokens": 256, "settings": {"each-layer.prefix": "dense"}},
    "with hidden states on disk": {"recipe": "markers", "tokens": 256, "settings": {"each-layer.memory": 1}},
    "copies with new weights": {"recipe": "drop-upcycle", "experts": 2},
}


@pytest.mark.sampled
@pytest.mark.parametrize("caption", CONVERSIONS)
def test_the_bytes_are_those_of_a_conversion_in_memory(
    caption: str, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(CONVERSIONS[caption])
    if options.get("tokens"):
        options["calibrate"] = dense / "ids.pt"
    held = written(dense, tmp_path / "held", monkeypatch, streamed=False, **options)
    assert written(dense, tmp_path / "streamed", monkeypatch, streamed=True, **options) == held
    assert sum(name.endswith(".safetensors") for name in held) > 2
    assert {p.dtype for p in moeify.load(tmp_path / "streamed").parameters()} == {torch.bfloat16}


@pytest.mark.slow
def test_weights_that_were_copied_are_in_memory_once(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_pages, "LEAST", 1)
    site = moeify.open_model(dense, dtype="bf16").host.find()[0][0]
    for handle in (site.up, site.gate, site.down):
        assert handle is not None
        values = handle.read()
        assert torch.equal(handle.read().float(), values.double().float())
        held = resident(values)
        copy = handle.copied(Tensor.float)
        assert resident(values) <= held - values.nbytes
        assert torch.equal(copy, values.float())


@pytest.mark.slow
def test_the_layers_lie_in_files_that_go_when_all_is_done(dense: Path, tmp_path: Path) -> None:
    shelves: list[list[str]] = []

    def progress(task: str, done: int, total: int | None) -> None:
        if task == "converting layers":
            shelves.append([path.name for path in (tmp_path / ".out.moeify-journal").glob("weights-*")])

    done = moeify.convert(dense, tmp_path / "out", progress=progress, **OPTIONS)  # type: ignore[arg-type]
    assert [len(shelf) for shelf in shelves] == [0, 1, 2, 3]
    assert os.listdir(tmp_path) == ["out"]
    with torch.no_grad():
        logits = done.model(input_ids=torch.arange(6)[None]).logits
        assert torch.equal(logits, moeify.load(tmp_path / "out")(input_ids=torch.arange(6)[None]).logits)


@pytest.mark.slow
def test_a_full_disk_is_one_line(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0:\nfile write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        moeify.errors.OutputError, match=r"^.*: a finished layer cannot be written: .*data/0: file write failed"
    ):
        moeify.convert(dense, tmp_path / "out", **OPTIONS)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_plan_of_what_streams_asks_for_a_layer(dense: Path) -> None:
    streamed = moeify.api.plan(dense, experts=4, dtype="bf16")
    held = moeify.api.plan(dense, experts=4, dtype="fp32")
    ffn = 3 * TINY.hidden * TINY.intermediate
    assert 8 * ffn <= streamed.peak_memory < 9 * ffn
    assert held.peak_memory > 4 * (held.parameters_before + held.parameters_after)


@pytest.mark.slow
def test_what_works_on_the_whole_model_is_planned_and_refused_as_such(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = open_outline(dense, dtype="bf16")

    def planned(recipe: str, *, to_disk: bool = True, aligned: bool = False) -> Plan:
        found = fit(load_recipe(recipe).build(registry()), graph, 0, "cpu", to_disk=to_disk, aligned=aligned)
        assert found is not None
        return found

    streamed, fitted, aligned = planned("markers"), planned("fast"), planned("markers", aligned=True)
    whole = 2 * (streamed.parameters_before + streamed.parameters_after)
    assert streamed.peak_memory < whole / 2
    assert fitted.peak_memory - streamed.peak_memory > 8 * TINY.intermediate**2
    assert aligned.peak_memory > whole + 20 * sum(layer.parameters_after for layer in aligned.layers)
    assert planned("markers", to_disk=False).peak_memory > whole
    assert planned("llama-moe").peak_memory > whole
    monkeypatch.setattr("moeify.pipeline.memory.machine_memory", lambda: streamed.weights - 1)
    planned("markers")
    with pytest.raises(UsageError, match=r"the converted weights take .* and this machine has"):
        planned("markers", aligned=True)


@pytest.mark.slow
def test_a_dry_run_counts_exports(dense: Path) -> None:
    found = moeify.api.plan(dense, experts=4, dtype="bf16", export=("torch", "hf"))
    assert found.peak_memory > 2 * (found.parameters_before + found.parameters_after)
    with pytest.raises(UsageError, match="aligning needs text"):
        moeify.api.plan(dense, experts=4, align=moeify.Alignment(minutes=1))


#: Of one shape in two depths: what scales with the model shows in the difference.
SHALLOW, DEEP = (Shape(hidden=1024, intermediate=2816, layers=layers, vocabulary=4000, heads=8) for layers in (4, 16))


@pytest.fixture(scope="module")
def depths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("depths")
    for name, shape in (("shallow", SHALLOW), ("deep", DEEP), ("tiny", TINY)):
        write_llama(folder / name, shape)
        write_ids(folder / f"{name}.pt", shape, 1024)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep pages of files until they are short of memory")
@pytest.mark.parametrize(
    ("tokens", "beside"), [(None, 64 << 20), (256, 64 + 128 << 20)], ids=["by weights alone", "calibrated"]
)
def test_the_peak_of_a_conversion_is_that_of_a_layer(tokens: int | None, beside: int, depths: Path, tmp_path: Path) -> None:
    """beside: bytes; four matrices of [chunk, neurons] more where tokens are run (moeify_passes.held_site.CHUNK_BYTES)."""

    def peak(name: str) -> int:
        data = () if tokens is None else ("--recipe", "markers", "--text", str(depths / f"{name}.pt"), "--tokens", str(tokens))
        found: int = measured(depths / name, tmp_path / "out", "--sparing", *data)["bytes"]
        return found

    shallow, deep, tiny = (peak(name) for name in ("shallow", "deep", "tiny"))
    weights = 2 * (DEEP.layers - SHALLOW.layers) * DEEP.layer
    assert deep - shallow < weights / 5, f"{(deep - shallow) >> 20} MiB more for {weights >> 20} MiB of layers"
    # One layer in float32 and the embedding; a tiny model shows what every process takes.
    assert deep - tiny < 4 * DEEP.layer + 2 * DEEP.embedding + beside, f"{(deep - tiny) >> 20} MiB"


@pytest.mark.slow
def test_a_killed_conversion_goes_on_after_its_last_layer(depths: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    whole = measured(depths / "shallow", output)
    output.rename(tmp_path / "whole")
    killed(depths / "shallow", output, 2)
    assert not output.exists()
    again = measured(depths / "shallow", output, "--resume")
    assert again["resumed"] >= 2
    assert again["by_pass"]["cluster-neurons"] < whole["by_pass"]["cluster-neurons"]
    assert contents(output) == contents(tmp_path / "whole")
    assert not [path for path in tmp_path.iterdir() if re.match(r"\.out", path.name)]
