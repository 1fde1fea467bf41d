"""What an evaluation found: data first, a table from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moeify.measure.divergence import Divergence
from moeify.measure.greedy import Greedy
from moeify.measure.load import LayerLoad
from moeify.measure.perplexity import Perplexity


@dataclass(frozen=True)
class Score:
    """One model on the data. name: dense, converted, or that of a null model; what: one sentence about it.

    active_fraction: of the FFNs' weights, the mean over the tokens of the data; None where it was not measured. perplexity: of
    causal language models; ratio: it / the dense model's. divergence: from the dense model. Both where one was given.
    """

    name: str
    what: str
    active_fraction: float | None = None
    perplexity: Perplexity | None = None
    divergence: Divergence | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """All that `evaluate_model` found; what does not apply is None or empty, and `notes` says why.

    data: what the data set says of itself. batches: how many were scored. scores: dense (if given), converted, then nulls.
    budget: the active fraction that was asked for. void: more than 1 % of it more was used. verdicts: what is to be said first.
    """

    model: str
    data: dict[str, Any]
    batches: int
    scores: tuple[Score, ...]
    active_fraction: float | None
    layers: tuple[LayerLoad, ...]
    greedy: Greedy | None
    notes: tuple[str, ...]
    budget: float | None = None
    void: bool = False
    verdicts: tuple[str, ...] = ()

    def score(self, name: str) -> Score | None:
        """The score of that name, if there is one."""
        return next((score for score in self.scores if score.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Plain data: dicts, lists, strings, numbers and None (also for infinite numbers)."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def rows(self) -> list[tuple[str, str]]:
        """Every figure that applies, as (measure, value)."""
        found = [(f"{score.name}: {title}", cell(score)) for score in self.scores for title, cell in _COLUMNS if cell(score)]
        if (greedy := self.greedy) is not None:
            found.append(("greedy texts: tokens agreed on", f"{greedy.mean:.1f} of {greedy.limit}"))
            found.append(("greedy texts: unchanged", f"{greedy.unchanged} of {greedy.prompts}"))
        if self.layers:
            found.append(("experts that no token chose", str(sum(len(load.dead) for load in self.layers))))
        return found

    def score_table(self) -> list[tuple[str, ...]]:
        """One line a model, the header first; columns without any value are left out."""
        shown = [column for column in _COLUMNS if any(column[1](score) for score in self.scores)]
        head = ("model", *(title for title, _ in shown))
        return [head, *((score.name, *(cell(score) or "-" for _, cell in shown)) for score in self.scores)]

    def layer_table(self) -> list[tuple[str, ...]]:
        """One line an MoE layer, the header first; empty without layers."""
        if not self.layers:
            return []
        head = ("layer", "experts", "mean on", "active fraction", "largest load", "balance", "dead")
        return [head, *(_layer_row(load) for load in self.layers)]


def _layer_row(load: LayerLoad) -> tuple[str, ...]:
    return (
        load.path, str(load.experts), f"{load.mean_on:.2f}", f"{load.active_fraction:.3f}", f"{max(load.loads):.3f}",
        f"{load.entropy:.3f}", str(len(load.dead)),
    )  # fmt: skip


def _perplexity_cell(score: Score) -> str:
    if score.perplexity is None:
        return ""
    error = score.perplexity.standard_error
    return f"{score.perplexity.value:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _divergence_cell(field: str) -> Callable[[Score], str]:
    def cell(score: Score) -> str:
        value = None if score.divergence is None else getattr(score.divergence, field)
        return "" if value is None else f"{value:.4f}"

    return cell


_COLUMNS: tuple[tuple[str, Callable[[Score], str]], ...] = (
    ("active fraction", lambda score: "" if score.active_fraction is None else f"{score.active_fraction:.3f}"),
    ("perplexity", _perplexity_cell),
    ("/ dense", lambda score: "" if score.ratio is None else f"{score.ratio:.3f}"),
    ("KL from dense", _divergence_cell("kl")),
    ("top-1 agreement", _divergence_cell("agreement")),
    ("relative error", _divergence_cell("relative_error")),
    ("cosine", _divergence_cell("cosine")),
)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
