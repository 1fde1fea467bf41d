"""Progress of nested tasks: bars on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from moeify.cli.screen import Screen, write

#: Off a terminal, progress is told only after that many seconds: a run that fails at once says one line.
PATIENCE = 30.0

# As moeify.pipeline.context.Progress, which would load torch.
Show = Callable[[str, int, int | None], None]


@dataclass
class OpenTasks:
    """The tasks that are under way, each inside the one before it. A task is over when one further out is heard of again, or
    when another comes after it was done or had no end to tell."""

    names: list[str] = field(default_factory=list)
    _over: bool = False

    def hear(self, task: str, done: int, total: int | None) -> list[str]:
        """Takes note of a report; returns the tasks that are over, innermost first."""
        keep = self.names.index(task) + 1 if task in self.names else len(self.names) - self._over
        ended = self.names[keep:][::-1]
        del self.names[keep:]
        if task not in self.names:
            self.names.append(task)
        self._over = total is None or done >= total
        return ended


def lines(screen: Screen) -> Show:
    """A plain line for each outermost task; with --verbose at once and for inner ones too."""
    started = time.monotonic()
    tasks, told = OpenTasks(), set[str]()

    def show(task: str, done: int, total: int | None) -> None:
        tasks.hear(task, done, total)
        elapsed = time.monotonic() - started
        if task in told or not (screen.verbose or (elapsed >= PATIENCE and len(tasks.names) == 1)):
            return
        told.add(task)
        write(screen.err, f"moeify: {elapsed:.1f} s: {task}" + (f" ({total:,})" if total else ""))

    return show


@contextmanager
def bars(stream: TextIO) -> Iterator[Show]:
    """A bar for each task that is under way, from the first report on; all vanish at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    tasks, ids = OpenTasks(), dict[str, TaskID]()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(file=stream)
    progress = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)

    def show(task: str, done: int, total: int | None) -> None:
        progress.start()
        for ended in tasks.hear(task, done, total):
            progress.remove_task(ids.pop(ended))
        if task not in ids:
            ids[task] = progress.add_task(task, total=total)
        progress.update(ids[task], completed=done, total=total)

    try:
        yield show
    finally:
        progress.stop()
