"""The evaluations that a converted folder keeps (`moeify evaluate --record`): one for each text, as `--json` prints them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeify.errors import InputError
from moeify.export.atomic import check_target, whole_file
from moeify.export.manifest_fields import Fields

NAME = "evaluations.json"

#: A field that says which data were measured on.
_DATA = "data"


@dataclass(frozen=True)
class Quality:
    """A causal language model on one text. text: its file's name; tokens: that were predicted. dense, converted: perplexities;
    dense and ratio (converted / dense) are None where the dense model was not given. active: fraction of the FFNs' weights that
    a token used, as measured; None without MoE layers."""

    text: str
    tokens: int
    dense: float | None
    converted: float
    ratio: float | None
    active: float | None


def check_record(folder: Path) -> None:
    """Before anything is measured. Raises OutputError where nothing can be written, InputError for a file that is none."""
    check_target(folder / NAME, force=True)
    _kept(folder)


def record(folder: Path, evaluation: Mapping[str, Any]) -> None:
    """Keeps what an evaluation says of itself (`to_json`), in the place of an earlier one on data of the same name."""
    others = [kept.data for kept in _kept(folder) if kept.table(_DATA).data.get("name") != evaluation[_DATA].get("name")]
    with whole_file(folder / NAME, force=True) as file:
        file.write_text(json.dumps([*others, evaluation], indent=2) + "\n", encoding="utf-8", newline="\n")


def recorded(folder: Path) -> tuple[Quality, ...]:
    """What was measured on texts, in the order of the evaluations; empty where none was kept. Raises InputError."""
    return tuple(found for kept in _kept(folder) if (found := _quality(kept)) is not None)


def _kept(folder: Path) -> tuple[Fields, ...]:
    path = folder / NAME
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}; delete it, and evaluate again with --record") from error
    rows = Fields({"evaluations": data}, str(path)).tables("evaluations")
    for row in rows:
        row.table(_DATA)
    return rows


def _quality(kept: Fields) -> Quality | None:
    scores = {score.text("name"): score for score in kept.tables("scores")}
    found = scores.get("converted")
    if found is None or found.is_null("perplexity"):
        return None
    before = scores.get("dense")
    return Quality(
        text=Path(kept.table(_DATA).text("name")).name,
        tokens=found.table("perplexity").integer("tokens"),
        dense=None if before is None or before.is_null("perplexity") else before.table("perplexity").number("value"),
        converted=found.table("perplexity").number("value"),
        ratio=None if found.is_null("ratio") else found.number("ratio"),
        active=None if found.is_null("active_fraction") else found.number("active_fraction"),
    )
