"""The tables of docs/examples.md, made of the rows in benchmarks/training/: which the training examples wrote.

PYTHONPATH=examples python -m benchmarks.training_tables [--write]
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import emoe_finetuning
import thor_translation
import upcycling_language_model
from checkpointed_runs import Runs, read_rows
from comparison import Experiment, compared, measured

ROWS = Path(__file__).parent / "training"
PAGE = Path(__file__).parent.parent / "docs" / "examples.md"

EXPERIMENTS: Mapping[str, Callable[[], tuple[Experiment, Any]]] = {
    "emoe_finetuning": emoe_finetuning.experiment,
    "upcycling_language_model": upcycling_language_model.experiment,
    "thor_translation": thor_translation.experiment,
}


def table(name: str) -> str:
    """Means with standard deviations, paired differences, and how it was run, of the setting that the example has now."""
    experiment, setting = EXPERIMENTS[name]()
    runs = Runs(ROWS / f"{name}.jsonl", experiment.name, asdict(setting))
    found = measured(experiment, runs)
    seeds = len(next(iter(found.values()), {}))
    if seeds < 2:
        return f"Not measured: {seeds} seeds are complete.\n"
    figures = list(next(iter(next(iter(found.values())).values())))  # measures first, then costs
    lines = ["| model | " + " | ".join(figures) + " |", "| --- |" + " --- |" * len(figures)]
    for model, by_seed in found.items():
        columns = [[values[figure] for values in by_seed.values()] for figure in figures]
        cells = [f"{mean(c):.4g} ({stdev(c):.2g})" if stdev(c) else f"{mean(c):.4g}" for c in columns]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    lines += ["", f"| {seeds} seeds, difference | " + " | ".join(experiment.measures) + " |"]
    lines.append("| --- |" + " --- |" * len(experiment.measures))
    differences = {(line.model, line.other, line.measure): line.difference for line in compared(experiment, found)}
    for model, other in experiment.pairs:
        each = (differences[model, other, measure] for measure in experiment.measures)
        cells = [f"{d}: {d.verdict(lower_is_better=experiment.lower_is_better)}" for d in each]
        lines.append(f"| {model} - {other} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", how(name, experiment, runs)]) + "\n"


def how(name: str, experiment: Experiment, runs: Runs) -> str:
    """Learning rates that were chosen, of which grid, and what the runs took."""
    rates = {run.arm: run.rate for run in runs.done if run.purpose == "measure"}
    chosen = ", ".join(f"{arm} {rates[arm]:g}" for arm in experiment.arms)
    rows = [row for row in read_rows(runs.path) if all(row.get(key) == value for key, value in runs.key.items())]
    minutes = sum(row["cpu_seconds"] for row in rows) / 60
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    grid = ", ".join(f"{rate:g}" for rate in experiment.rates)
    file = f"[benchmarks/training/{name}.jsonl](../benchmarks/training/{name}.jsonl)"
    return textwrap.fill(
        f"Learning rates, chosen of {grid} by validation with another seed: {chosen}. {len(rows)} runs took {minutes:.0f}"
        f" minutes of one core (torch {rows[0]['torch']}; rows of {file}, commit {commits}).",
        width=128,
        break_long_words=False,
        break_on_hyphens=False,
    )


def page(text: str) -> str:
    """The page with its tables made anew: what stands between <!-- NAME --> and <!-- end --> is a table."""

    def fresh(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{table(match[1])}<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n(?:.*?)<!-- end -->", fresh, text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write them into {PAGE.name}")
    if parser.parse_args().write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for name in EXPERIMENTS:
        print(f"{name}\n\n{table(name)}")


if __name__ == "__main__":
    main()
