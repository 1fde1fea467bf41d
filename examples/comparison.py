"""A comparison from its command line to its report: rates are tuned for every arm, then models are compared seed by seed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from transformers.utils import logging

from checkpointed_runs import Budget, Results, Run, Runs, TimeIsUp
from paired import Difference, paired_difference

#: Learning rates are chosen with this seed, which no comparison uses.
TUNING_SEED = 1000


@dataclass(frozen=True)
class Experiment:
    """Arms are ways to train; each gives one model or several, the first of which is named as the arm.

    measures: the figures to compare; rates are chosen by the first one. pairs: (a model, what it is compared with).
    rates: the grid of learning rates, one and the same for every arm.
    """

    name: str
    arms: tuple[str, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    measures: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    lower_is_better: bool = False


@dataclass(frozen=True)
class Compared:
    """One line of the outcome: `model` - `other` in a measure."""

    measure: str
    model: str
    other: str
    difference: Difference


def carry_out(experiment: Experiment, runs: Runs, work: Callable[[Run], Results]) -> None:
    """Tunes, then measures every arm with the first seed, with the second, and so on. Runs that are done are not done again."""
    rates = {arm: tuned(experiment, arm, runs, work) for arm in experiment.arms}
    print("learning rates: " + ", ".join(f"{arm} {rate:g}" for arm, rate in rates.items()))
    for seed in experiment.seeds:
        for arm in experiment.arms:
            runs.result(Run("measure", arm, rates[arm], seed), work)


def tuned(experiment: Experiment, arm: str, runs: Runs, work: Callable[[Run], Results]) -> float:
    """The rate of the grid with the best validation; where it has one alone, nothing is run."""
    if len(experiment.rates) == 1:
        return experiment.rates[0]
    sign = 1 if experiment.lower_is_better else -1
    tried = {rate: runs.result(Run("tune", arm, rate, TUNING_SEED), work)[arm] for rate in experiment.rates}
    return min(tried, key=lambda rate: sign * tried[rate][experiment.measures[0]])


def measured(experiment: Experiment, runs: Runs) -> dict[str, dict[int, dict[str, float]]]:
    """Model -> seed -> figures, for the seeds that are complete in all arms."""
    by_arm: dict[str, dict[int, Results]] = {arm: {} for arm in experiment.arms}
    for run, results in runs.done.items():
        if run.purpose == "measure" and run.arm in by_arm:
            by_arm[run.arm][run.seed] = results
    complete = sorted(set.intersection(*(set(by_seed) for by_seed in by_arm.values())))
    found: dict[str, dict[int, dict[str, float]]] = {}
    for by_seed in by_arm.values():
        for seed in complete:
            for model, figures in by_seed[seed].items():
                found.setdefault(model, {})[seed] = figures
    return found


def compared(experiment: Experiment, found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[Compared]:
    """Every measure of every pair, over the seeds that are complete."""
    lines = []
    for measure in experiment.measures:
        for model, other in experiment.pairs:
            ours, theirs = ([figures[measure] for figures in found[name].values()] for name in (model, other))
            lines.append(Compared(measure, model, other, paired_difference(ours, theirs)))
    return lines


def report(experiment: Experiment, runs: Runs) -> str:
    """Means with standard deviations, then differences with their 95 % intervals and what they allow to say."""
    found = measured(experiment, runs)
    seeds = list(next(iter(found.values()), {}))
    if len(seeds) < 2:
        return f"{len(seeds)} seeds are complete in all arms, a comparison takes two: run again to go on"
    lines = [f"{len(seeds)} seeds are complete in all arms; mean (standard deviation):"]
    for model, by_seed in found.items():
        columns = {name: [figures[name] for figures in by_seed.values()] for name in by_seed[seeds[0]]}
        shown = ", ".join(f"{name} {mean(values):.5g} ({stdev(values):.2g})" for name, values in columns.items())
        lines.append(f"  {model}: {shown}")
    lines.append("paired differences, with the 95 % interval of their mean:")
    for line in compared(experiment, found):
        verdict = line.difference.verdict(lower_is_better=experiment.lower_is_better)
        lines.append(f"  {line.measure}, {line.model} - {line.other}: {line.difference}: {verdict}")
    return "\n".join(lines)


def arguments(doc: str | None, name: str) -> argparse.Namespace:
    """The options that all comparisons have, off the command line; transformers is told to be quiet."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path(f"{name}.jsonl"), help="where finished runs are kept")
    parser.add_argument("--minutes", type=float, help="stop after so many; run again to go on")
    parser.add_argument("--quick", action="store_true", help="a tiny setting that shows the way and proves nothing")
    return parser.parse_args()


def compare(
    experiment: Experiment, setting: Mapping[str, Any], work: Callable[[Run, Budget], Results], options: argparse.Namespace
) -> None:
    """Carries out and reports; what is undone when the minutes are over is left for the next run."""
    runs, budget = Runs(options.rows, experiment.name, setting), Budget(options.minutes)
    try:
        carry_out(experiment, runs, lambda run: work(run, budget))
    except TimeIsUp as end:
        print(f"stopped: {end}")
    print(report(experiment, runs))
