"""What a run found is kept, and never worked out twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpointed_runs import Budget, Results, Run, Runs, TimeIsUp, append_row, read_rows


class Work:
    """Counts what it is asked to do."""

    def __init__(self) -> None:
        self.asked: list[Run] = []

    def __call__(self, run: Run) -> Results:
        self.asked.append(run)
        return {run.arm: {"value": run.seed + run.rate}}


RUNS = [Run("measure", arm, 0.1, seed) for seed in (0, 1) for arm in ("dense", "moe")]


def test_resuming_does_no_work_twice(tmp_path: Path) -> None:
    path, first, second = tmp_path / "folder" / "rows.jsonl", Work(), Work()
    runs = Runs(path, "experiment", {"size": 1})
    found = [runs.result(run, first) for run in RUNS[:3]]
    again = Runs(path, "experiment", {"size": 1})
    assert [again.result(run, second) for run in RUNS[:3]] == found
    assert again.result(RUNS[3], second) == {"moe": {"value": 1.1}}
    assert (first.asked, second.asked) == (RUNS[:3], RUNS[3:])
    assert len(path.read_text().splitlines()) == 4


@pytest.mark.parametrize(("experiment", "setting"), [("other", {"size": 1}), ("experiment", {"size": 2})])
def test_other_experiments_and_settings_share_a_file(tmp_path: Path, experiment: str, setting: dict[str, int]) -> None:
    path, work = tmp_path / "rows.jsonl", Work()
    Runs(path, "experiment", {"size": 1}).result(RUNS[0], work)
    Runs(path, experiment, setting).result(RUNS[0], work)
    assert work.asked == [RUNS[0], RUNS[0]]
    Runs(path, "experiment", {"size": 1}).result(RUNS[0], work)
    assert len(work.asked) == 2


def test_tuning_and_measuring_are_two_runs(tmp_path: Path) -> None:
    runs, work = Runs(tmp_path / "rows.jsonl", "experiment", {}), Work()
    for run in (Run("tune", "dense", 0.1, 0), Run("measure", "dense", 0.1, 0), Run("measure", "dense", 0.2, 0)):
        runs.result(run, work)
    assert len(work.asked) == 3


def test_a_row_says_what_where_and_how_long(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Runs(path, "experiment", {"sizes": (1, 2)}).result(RUNS[0], Work())
    [row] = read_rows(path)
    assert row["run"] == {"purpose": "measure", "arm": "dense", "rate": 0.1, "seed": 0}
    assert (row["setting"], row["results"]) == ({"sizes": [1, 2]}, {"dense": {"value": 0.1}})
    assert {"seconds", "cpu_seconds", "moeify", "torch", "transformers", "machine", "cores", "threads", "commit"} < set(row)
    assert Runs(path, "experiment", {"sizes": (1, 2)}).done  # tuples come back as lists, and are known again


def test_a_run_that_fails_leaves_no_row(tmp_path: Path) -> None:
    def failing(run: Run) -> Results:
        raise TimeIsUp("1 minutes are over")

    path = tmp_path / "rows.jsonl"
    with pytest.raises(TimeIsUp):
        Runs(path, "experiment", {}).result(RUNS[0], failing)
    assert not path.exists()


def test_a_line_that_a_killed_run_left_unfinished_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_row(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2, "torn')
    append_row(path, {"n": 3})
    append_row(path, {"n": 4})
    assert [row["n"] for row in read_rows(path)] == [1, 3, 4]
    assert json.loads(path.read_text().splitlines()[-1]) == {"n": 4}


def test_a_budget_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    budget, endless = Budget(2, start=100.0), Budget(None, start=100.0)
    now[0] = 219.0
    budget.check()
    now[0] = 221.0
    endless.check()
    with pytest.raises(TimeIsUp, match="2 minutes are over"):
        budget.check()
