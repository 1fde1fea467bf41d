"""A comparison: rates are tuned on their own seed, only seeds that are complete in all arms count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from checkpointed_runs import Results, Run, Runs, TimeIsUp
from comparison import TUNING_SEED, Experiment, carry_out, compared, measured, report

EXPERIMENT = Experiment(
    name="experiment",
    arms=("dense", "moe"),
    rates=(0.1, 0.2, 0.3),
    seeds=(0, 1, 2),
    measures=("error",),
    pairs=(("moe", "dense"), ("moe, merged", "dense")),
    lower_is_better=True,
)


class Work:
    """Errors are least at another rate in each arm; ends after so many runs."""

    def __init__(self, runs: int = 100) -> None:
        self.left = runs
        self.asked: list[Run] = []

    def __call__(self, run: Run) -> Results:
        if not self.left:
            raise TimeIsUp("over")
        self.left -= 1
        self.asked.append(run)
        best = {"dense": 0.2, "moe": 0.3}[run.arm]
        error = 1 + abs(run.rate - best) + 0.1 * run.seed
        if run.arm == "dense":
            return {"dense": {"error": error, "steps": 7.0}}
        return {"moe": {"error": error - 0.5 + 0.01 * run.seed}, "moe, merged": {"error": error}}


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "rows.jsonl", "experiment", {})


def test_every_arm_gets_its_own_rate_of_one_grid(runs: Runs) -> None:
    work = Work()
    carry_out(EXPERIMENT, runs, work)
    tuning = [(run.arm, run.rate) for run in work.asked if run.purpose == "tune"]
    assert tuning == [(arm, rate) for arm in ("dense", "moe") for rate in (0.1, 0.2, 0.3)]
    assert {run.seed for run in work.asked if run.purpose == "tune"} == {TUNING_SEED}
    assert {(run.arm, run.rate) for run in work.asked if run.purpose == "measure"} == {("dense", 0.2), ("moe", 0.3)}
    assert TUNING_SEED not in {run.seed for run in work.asked if run.purpose == "measure"}


def test_where_more_is_better_the_other_end_is_chosen(runs: Runs) -> None:
    work = Work()
    carry_out(replace(EXPERIMENT, lower_is_better=False), runs, work)
    assert {(run.arm, run.rate) for run in work.asked if run.purpose == "measure"} == {("dense", 0.1), ("moe", 0.1)}


def test_a_single_rate_needs_no_tuning(runs: Runs) -> None:
    work = Work()
    carry_out(replace(EXPERIMENT, rates=(0.4,)), runs, work)
    assert [run.purpose for run in work.asked] == ["measure"] * 6


def test_only_seeds_that_are_complete_in_all_arms_count(runs: Runs) -> None:
    work = Work(runs=6 + 5)  # the third seed lacks its second arm
    with pytest.raises(TimeIsUp):
        carry_out(EXPERIMENT, runs, work)
    found = measured(EXPERIMENT, runs)
    assert {model: list(by_seed) for model, by_seed in found.items()} == {
        "dense": [0, 1],
        "moe": [0, 1],
        "moe, merged": [0, 1],
    }
    more = Work()
    carry_out(EXPERIMENT, runs, more)
    assert more.asked == [Run("measure", "moe", 0.3, 2)]


def test_differences_are_paired_by_seed(runs: Runs) -> None:
    carry_out(EXPERIMENT, runs, Work())
    by_model = {line.model: line for line in compared(EXPERIMENT, measured(EXPERIMENT, runs))}
    assert by_model["moe"].difference.mean == pytest.approx(-0.49)
    assert by_model["moe"].difference.high == pytest.approx(-0.49 + 4.302653 * 0.01 / 3**0.5)
    assert by_model["moe, merged"].difference.mean == pytest.approx(0)


def test_the_report_says_what_the_interval_says(runs: Runs) -> None:
    carry_out(EXPERIMENT, runs, Work())
    lines = report(EXPERIMENT, runs).splitlines()
    assert lines[0] == "3 seeds are complete in all arms; mean (standard deviation):"
    assert lines[1] == "  dense: error 1.1 (0.1), steps 7 (0)"
    assert lines[-2].startswith("  error, moe - dense: -0.49 [-0.5148, -0.4652]: gain")
    assert lines[-1].endswith("no gain shown")


@pytest.mark.parametrize("done", [0, 6 + 1, 6 + 3])
def test_fewer_than_two_seeds_are_not_compared(runs: Runs, done: int) -> None:
    with pytest.raises(TimeIsUp):
        carry_out(EXPERIMENT, runs, Work(done))
    seeds = 1 if done == 9 else 0
    assert report(EXPERIMENT, runs) == f"{seeds} seeds are complete in all arms, a comparison takes two: run again to go on"
