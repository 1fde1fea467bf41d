"""A converted model, or layers of a shape, against what they replace, in ONNX Runtime on this machine's CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from moeify.api.arguments import Data, Example, Factory, Source
from moeify.errors import UsageError
from moeify.pipeline.context import Progress, no_progress

if TYPE_CHECKING:
    from moeify.speed.layer_shape import LayerShape
    from moeify.speed.settings import Effort, Settings
    from moeify.speed.speed_report import SpeedReport


def bench(
    folder: str | Path,
    *,
    dense: Source | None = None,
    tokens: Sequence[int] = (1, 16, 128, 512),
    past: Sequence[int] = (128,),
    threads: Sequence[int] = (1,),
    precision: str = "fp32",
    data: Data | None = None,
    rounds: int = 30,
    seconds: float = 3.0,
    seed: int = 0,
    keep: str | Path | None = None,
    factory: Factory | None = None,
    example: Example | None = None,
    allow_pickle: bool = False,
    progress: Progress = no_progress,
) -> SpeedReport:
    """Times a converted folder against the dense model, both exported alike, in one process, by turns.

    dense: the model before conversion; without it, what the folder was made from is looked for beside the folder and here, and
    taken where its digests are the recorded ones. tokens: of one run (rows, for inputs without a sequence). past: tokens in
    a decoder's cache, after which the step of one token is timed. data: text whose tokens are read in place of random ones.
    keep: a new folder for both ONNX files, which else go to a temporary one. rounds: of every cell, fewer once one took
    `seconds`.

    Raises UsageError for bad options, InputError where the dense model is not found or cannot be read, and what `export` does.
    """
    from moeify.api.bench_files import open_pair
    from moeify.speed.measuring import report
    from moeify.speed.settings import Effort

    settings = _settings(tokens, past, threads, precision, Effort(rounds, seconds), seed)
    with _files(keep) as files:
        pair = open_pair(
            Path(folder), dense, files, precision=precision, data=data, factory=factory, example=example,
            allow_pickle=allow_pickle, progress=progress,
        )  # fmt: skip
        progress("looking at what routers choose", 0, None)
        subject = pair.subject(settings)
        notes = pair.notes
        del pair  # the weights of the eager model
        return report((subject,), settings, notes=notes, progress=progress)


def bench_layers(
    shapes: Sequence[LayerShape | str],
    *,
    tokens: Sequence[int] = (1, 16, 128, 512),
    threads: Sequence[int] = (1,),
    precision: str = "fp32",
    rounds: int = 30,
    seconds: float = 3.0,
    seed: int = 0,
    keep: str | Path | None = None,
    progress: Progress = no_progress,
) -> SpeedReport:
    """Times layers of these shapes against dense ones of the same size and precision: stacks whose dense weights are more than
    four times the last-level cache, a new input each run that loads the experts evenly, router included. Times are of a layer.

    shapes: or their texts, `hidden=768,neurons=3072,experts=8,top_k=2,activation=silu,gated=true`. keep: a new folder for the
    ONNX files. Raises UsageError for bad options and shapes.
    """
    from moeify.speed.layer_shape import LayerShape
    from moeify.speed.layer_subject import stack_subject
    from moeify.speed.measuring import report
    from moeify.speed.settings import Effort

    settings = _settings(tokens, (), threads, precision, Effort(rounds, seconds), seed)
    parsed = [LayerShape.parse(shape) if isinstance(shape, str) else shape for shape in shapes]
    if not parsed:
        raise UsageError("no shape is given: name one, such as hidden=768,neurons=3072,experts=8,top_k=2")
    with _files(keep) as files:
        subjects = []
        for number, shape in enumerate(parsed):
            progress("writing stacks of layers", number, len(parsed))
            subjects.append(stack_subject(shape, files / f"layers-{number}", settings))
        return report(subjects, settings, of_a_layer=True, progress=progress)


def _settings(
    tokens: Sequence[int], past: Sequence[int], threads: Sequence[int], precision: str, effort: Effort, seed: int
) -> Settings:
    """Raises UsageError and MissingExtraError before anything is read."""
    from moeify.export.onnx.packages import check_packages
    from moeify.speed.settings import Settings

    settings = Settings(tuple(tokens), tuple(past), tuple(threads), precision, effort, seed)
    check_packages()
    return settings


@contextmanager
def _files(keep: str | Path | None) -> Iterator[Path]:
    """A folder for the block: a temporary one, or the one that is kept. Raises OutputError where that exists already."""
    from moeify.export.atomic import whole_folder

    if keep is None:
        with TemporaryDirectory(prefix="moeify-bench-") as folder:
            yield Path(folder)
    else:
        with whole_folder(Path(keep), False) as folder:
            yield folder
