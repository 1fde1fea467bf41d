"""Several recipes at several budgets on one model: a row of figures each, and one picture."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeify.api.arguments import Data, check_files, device_of
from moeify.api.sweep_cell import Bench, Cell
from moeify.data.mixed import sources_of
from moeify.errors import InputError, OutputError, UsageError
from moeify.frontend.loaded import file_digest
from moeify.measure.rows_file import Row, RowsFile
from moeify.measure.sweep_picture import check_matplotlib, draw
from moeify.pipeline.context import Progress, no_progress
from moeify.pipeline.recipe import load_recipe

ROWS, PICTURE, DENSE = "rows.jsonl", "sweep", "dense.onnx"


@dataclass(frozen=True)
class Sweep:
    """rows: one for each recipe and budget, in that order. pictures: files. taken_over: rows that an earlier run measured."""

    folder: Path
    rows: tuple[Row, ...]
    pictures: tuple[Path, ...]
    taken_over: int


def sweep(
    source: str | Path,
    output: str | Path,
    *,
    recipes: Sequence[str | Path],
    active: Sequence[float],
    calibrate: str | Path | Sequence[str | Path],
    evaluate: str | Path,
    tokens: int | None = None,
    evaluate_tokens: int | None = None,
    time: bool = True,
    factory: str | None = None,
    example: str | Path | None = None,
    allow_pickle: bool = False,
    seed: int | None = None,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> Sweep:
    """Converts the model by each recipe at each budget, evaluates, exports to ONNX, and times it beside the dense model.

    active: budgets, each above 0 and up to 1. calibrate, evaluate: data, files or `pkg.mod:callable`; several to calibrate on
    are mixed. tokens and evaluate_tokens bound them. time: False leaves ONNX out. output: a folder; OUTPUT/rows.jsonl gets a
    row as soon as it is measured, and a later run with the same settings goes on after the last one; OUTPUT/sweep.png and .svg
    show all rows of this run.

    A recipe that cannot be converted at a budget gives a row with the reason as `error`. Raises UsageError, InputError and
    MissingExtraError for what is wrong with the settings before a weight is read; InputError and OutputError later.
    """
    path, folder = Path(source).expanduser(), Path(output)
    plans = [load_recipe(recipe) for recipe in dict.fromkeys(map(str, recipes))]
    _check(path, plans, active, (calibrate, evaluate), time=time, device=device)
    cells = [Cell.of(plan, budget, tokens, seed) for plan in plans for budget in dict.fromkeys(active)]
    loading = {"factory": factory, "example": example, "allow_pickle": allow_pickle, "device": device}
    model = _digests(path)
    settings = {
        "model": model, "calibrate": _data_digests(calibrate), "evaluate": _data_digest(evaluate), "time": time,
        "evaluate_tokens": evaluate_tokens, "loading": {name: str(value) for name, value in loading.items()},
    }  # fmt: skip
    file = _open_rows(folder)
    digests = [cell.digest(settings) for cell in cells]
    left = [(cell, digest) for cell, digest in zip(cells, digests) if digest not in file.rows]
    dense = folder / DENSE if time and left else None
    if dense is not None:
        progress("exporting the dense model", 0, None)
        _export_dense(path, dense, loading)
    bench = Bench(
        path, [str(part) for part in sources_of(calibrate)], str(evaluate), evaluate_tokens, loading, dense, folder, progress
    )
    try:
        for done, (cell, digest) in enumerate(left):
            progress("sweep", done, len(left))
            file.add(bench.row(cell, digest))
        progress("sweep", len(left), len(left))
    finally:
        if dense is not None:
            dense.unlink(missing_ok=True)
            dense.with_name(f"{DENSE}.data").unlink(missing_ok=True)
    rows = tuple(file.rows[digest] for digest in digests)
    return Sweep(folder, rows, draw(rows, folder / PICTURE), len(cells) - len(left))


def _check(path: Path, recipes: Sequence[Any], active: Sequence[float], data: Sequence[Data], **options: Any) -> None:
    """Raises for what can be told to be wrong before anything is read."""
    check_matplotlib()
    if options["time"]:
        from moeify.export.onnx.packages import check_packages

        check_packages()
        if options["device"] != "cpu":
            raise UsageError(f"ONNX Runtime is timed on the CPU: leave out --device {options['device']}, or give --no-time")
    device_of(options["device"])
    if not recipes or not active:
        raise UsageError("a sweep needs at least one recipe and one active fraction: give --recipes and --active")
    for budget in active:
        if not 0 < budget <= 1:
            raise UsageError(f"active is {budget}: choose fractions above 0 and up to 1, such as 0.75,0.5,0.25")
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; models are read from disk, nothing is downloaded")
    for source in data:
        check_files(source)


def _open_rows(folder: Path) -> RowsFile:
    """Raises OutputError for a folder that holds something else, or that cannot be made."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / ROWS).is_file()):
        raise OutputError(f"{folder}: is not an earlier sweep's folder; choose another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ROWS).touch()  # what marks the folder as ours, before anything else stands in it
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error
    for unfinished in folder.glob(".cell-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    return RowsFile(folder / ROWS)


def _digests(path: Path) -> dict[str, str]:
    """File name -> sha256 of what the model is read from."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    return {file.name: file_digest(file) for file in files}


def _data_digests(source: str | Path | Sequence[str | Path]) -> str | list[str]:
    found = [_data_digest(part) for part in sources_of(source)]
    return found if len(found) > 1 else found[0]


def _data_digest(source: str | Path) -> str:
    path = Path(source).expanduser()
    return file_digest(path) if path.is_file() else str(source)


def _export_dense(path: Path, output: Path, loading: dict[str, Any]) -> None:
    from moeify.export.onnx.exporting import export_onnx
    from moeify.frontend.load_model import load_model

    loaded = load_model(path, **loading)
    export_onnx(loaded.model, loaded.example, output, force=True)
