"""One cell of a sweep: a recipe at a budget, converted, evaluated and timed, as a row of plain data."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from moeify import __version__
from moeify.api.afterwards import evaluate
from moeify.api.conversion import convert
from moeify.api.planning import registry
from moeify.errors import ConversionError, UsageError
from moeify.pipeline.configure import configure
from moeify.pipeline.context import Progress
from moeify.pipeline.recipe import Recipe

if TYPE_CHECKING:
    from moeify.measure.evaluation import Evaluation

#: The lengths of the sequences that are timed, and how.
LENGTHS, WARMUP, ROUNDS, SECONDS = (1, 128), 2, 15, 20.0


@dataclass(frozen=True, eq=False)
class Cell:
    """recipe: with the budget set; None where it cannot be set, and `reason` says why."""

    name: str
    active: float
    recipe: Recipe | None
    reason: str = ""

    @classmethod
    def of(cls, recipe: Recipe, active: float, tokens: int | None, seed: int | None) -> Self:
        try:
            plan = configure(recipe, active=active, tokens=tokens, seed=seed)
            return cls(recipe.name, active, plan.explicit(registry()))
        except UsageError as error:
            return cls(recipe.name, active, None, str(error))

    def digest(self, settings: Mapping[str, Any]) -> str:
        """Of all that the row depends on."""
        recipe = self.reason if self.recipe is None else self.recipe.to_toml()
        key = {"recipe": [self.name, recipe], "active": self.active, "moeify": __version__, **settings}
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Bench:
    """What all cells share. loading: options that open the dense model. dense: its ONNX file; None: nothing is timed."""

    source: Path
    calibrate: Sequence[str]
    evaluate: str
    evaluate_tokens: int | None
    loading: Mapping[str, Any]
    dense: Path | None
    scratch: Path
    progress: Progress

    def row(self, cell: Cell, digest: str) -> dict[str, Any]:
        """A recipe that cannot reach the budget gives a row with the reason as `error`. Raises InputError and OutputError."""
        head = {"recipe": cell.name, "active": cell.active, "digest": digest, "moeify": __version__}
        try:
            if cell.recipe is None:
                raise UsageError(cell.reason)
            return {**head, **self._measured(cell.recipe)}
        except (UsageError, ConversionError) as error:
            return {**head, "error": str(error)}

    def _measured(self, recipe: Recipe) -> dict[str, Any]:
        seconds: dict[str, float] = {}

        def timed(name: str, work: Callable[[], Any]) -> Any:
            started = time.perf_counter()
            found = work()
            seconds[name] = round(time.perf_counter() - started, 3)
            return found

        with tempfile.TemporaryDirectory(prefix=".cell-", dir=self.scratch) as scratch:
            folder = Path(scratch) / "moe"
            done = timed("convert", lambda: convert(
                self.source, folder, recipe=recipe, calibrate=self.calibrate, progress=self.progress, **self.loading,
            ))  # fmt: skip
            found = timed("evaluate", lambda: evaluate(
                folder, self.evaluate, dense=self.source, tokens=self.evaluate_tokens, progress=self.progress,
                **self.loading,
            ))  # fmt: skip
            milliseconds = timed("time", lambda: self._times(folder)) if self.dense is not None else None
        layer_errors = done.report.to_json()["layer_errors"]
        return {**figures(found), "layer_errors": layer_errors, "ms": milliseconds, "seconds": seconds}

    def _times(self, folder: Path) -> dict[str, dict[str, float]]:
        """Median milliseconds by number of tokens and model, each model on one thread, in turn."""
        from moeify.api.afterwards import export
        from moeify.measure.timing import interleaved
        from moeify.runtime.forward_call import forward_call
        from moeify.runtime.session import session

        assert self.dense is not None
        example: dict[str, Any] = {name: value for name, value in self.loading.items() if name != "device"}
        export(folder, folder.with_suffix(".onnx"), progress=self.progress, **example)
        sessions = {"dense": session(self.dense, threads=1), "converted": session(folder.with_suffix(".onnx"), threads=1)}
        found = {}
        for tokens in LENGTHS:
            self.progress("timing", 0, None)
            calls = {name: forward_call(runtime, tokens) for name, runtime in sessions.items()}
            timings = interleaved(calls, lambda: None, warmup=WARMUP, rounds=ROUNDS, seconds=SECONDS)
            found[str(tokens)] = {name: round(1000 * timing.wall.median, 4) for name, timing in timings.items()}
        return found


def figures(found: Evaluation) -> dict[str, Any]:
    """What a row has of an evaluation."""
    plain = found.to_json()
    scores = {score["name"]: score for score in plain["scores"]}
    converted, dense = scores["converted"], scores["dense"]
    divergence = converted["divergence"] or {}
    return {
        "active_fraction": plain["active_fraction"],
        "void": plain["void"],
        "verdicts": plain["verdicts"],
        "perplexity": converted["perplexity"] and converted["perplexity"]["value"],
        "dense_perplexity": dense["perplexity"] and dense["perplexity"]["value"],
        "ratio": converted["ratio"],
        **{name: divergence.get(name) for name in ("kl", "agreement", "relative_error")},
    }
