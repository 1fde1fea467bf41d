"""A converted folder as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeify.api.arguments import Data, Example, Factory, Source, dense_model, device_of, example_of, open_batches
from moeify.api.models import layers_by_site
from moeify.errors import InputError, UsageError
from moeify.pipeline.context import Progress, no_progress

if TYPE_CHECKING:
    from moeify.export.folder import LoadedFolder
    from moeify.measure.dense_ffn import DenseFFN
    from moeify.measure.routing_facts import RoutingFacts

NAME = "report.html"

#: Layers whose neurons are looked at, at most.
SHOWN = 8


@dataclass(frozen=True)
class ReportPage:
    """output: the file that was written. verdict: its first line. left_out: sections that nothing was measured for."""

    output: Path
    verdict: str
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"output": str(self.output), "verdict": self.verdict, "left_out": list(self.left_out)}


@dataclass(frozen=True)
class _Measured:
    routing: RoutingFacts
    data: Mapping[str, Any]
    about_dense: str


def report(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    data: Data | None = None,
    tokens: int | None = 8192,
    dense: Source | None = None,
    sweep: str | Path | None = None,
    bench: str | Path | None = None,
    factory: Factory | None = None,
    example: Example | None = None,
    device: str = "cpu",
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = no_progress,
) -> ReportPage:
    """Writes what is known of a converted folder as one HTML file that needs nothing else: layers, errors, load, routing
    entropy, co-activation, quality, speed. What was not measured is left out, with a line that says how to get it.

    output: the file; None: FOLDER/report.html. data: text or tensors that load, entropy and co-activation are measured on;
    tokens: of it at most. dense: the model before conversion, for the order that neurons had; without it, what the folder was
    made from is looked for beside the folder and here. sweep: the folder of a sweep or its rows.jsonl. bench: the JSON of a
    benchmark. Equal inputs give equal bytes.

    Raises UsageError for options that do not go together, InputError for what cannot be read, OutputError where the file
    exists (without `force`) or cannot be written: nothing is left behind then.
    """
    from moeify.export.atomic import check_target, whole_file
    from moeify.report_page.folder_facts import folder_facts
    from moeify.report_page.measured_files import read_bench, read_sweep
    from moeify.report_page.page import Contents, first_line, render

    if data is None and dense is not None:
        raise UsageError("the dense model is compared on data, but there are none: give data too (--data)")
    place = Path(folder).expanduser()
    target = place / NAME if output is None else Path(output)
    facts = folder_facts(place)
    check_target(target, force=force)
    rows = None if sweep is None else read_sweep(Path(sweep))
    speed = None if bench is None else read_bench(Path(bench))
    found = None
    if data is not None:
        progress("loading", 0, None)
        found = _measure(
            place,
            data,
            tokens,
            dense,
            factory=factory,
            example=example,
            device=device,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    contents = Contents(facts, sweep=rows, speed=speed)
    if found is not None:
        contents = Contents(facts, found.routing, found.data, rows, speed, found.about_dense)
    with whole_file(target, force) as file:
        file.write_text(render(contents), encoding="utf-8", newline="\n")
    return ReportPage(target, first_line(contents)[1], contents.left_out)


def _measure(
    folder: Path,
    data: Data,
    tokens: int | None,
    dense: Source | None,
    *,
    factory: Factory | None,
    example: Example | None,
    device: str,
    allow_pickle: bool,
    progress: Progress,
) -> _Measured:
    from moeify.data.data_set import DataSet
    from moeify.export.folder import load_folder
    from moeify.measure.routing_facts import routing_facts

    loaded = load_folder(folder, factory=factory, device=device_of(device), allow_pickle=allow_pickle)
    batch = example_of(loaded, example)
    batches = open_batches(data, loaded.model, loaded.tokenizer, batch, tokens)
    paths = list(loaded.manifest.layers)
    every = max(1, -(-len(paths) // SHOWN))
    loading: dict[str, Any] = {"dtype": loaded.manifest.dtype, "device": device, "allow_pickle": allow_pickle}
    ffns, about = _dense_ffns(folder, loaded, dense, lambda source: dense_model(source, factory, batch, **loading).model)

    def looked_at(done: int) -> None:
        progress("looking at routing", done, None)

    routing = routing_facts(loaded.model, layers_by_site(loaded.model), batches, paths[::every], ffns, looked_at)
    described = batches.describe() if isinstance(batches, DataSet) else {"name": type(data).__name__}
    return _Measured(routing, described, about)


def _dense_ffns(folder: Path, loaded: LoadedFolder, dense: Source | None, opened: Any) -> tuple[dict[str, DenseFFN], str]:
    """By path, and why there are none. A model that was given has to be read; one that is only looked for need not be there."""
    from moeify.frontend.recorded_source import recorded_source
    from moeify.measure.dense_ffn import dense_ffns

    if loaded.manifest.source.kind == "onnx":
        return {}, "it is told of PyTorch models alone"
    if dense is None:
        try:
            source = recorded_source(loaded.manifest.source, (folder.absolute().parent, Path.cwd()))
        except InputError as error:
            return {}, str(error).partition(": give the dense model")[0]
        dense = source
    return dense_ffns(opened(dense), loaded.manifest.layers), ""
