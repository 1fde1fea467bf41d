from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from cli.command_line import Outcome
from cli.tiny_models import TINY
from moeify import api
from moeify.cli.progress import OpenTasks, bars, lines
from moeify.cli.screen import Screen, cell
from moeify.cli.working import working
from moeify.errors import ConversionError, OutputError, one_line

Run = Callable[[str], Outcome]

CONVERT = f"convert model.pt -o out {TINY} --experts 4"


def broken(*args: Any, **kwargs: Any) -> Any:
    raise ZeroDivisionError("division\nby zero")


def test_a_bug_is_one_line_that_says_how_to_see_more(moeify: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "convert", broken)
    expected = "moeify: internal error: ZeroDivisionError: division by zero; run again with --verbose for the traceback\n"
    assert moeify(CONVERT) == Outcome(1, "", expected)


def test_the_traceback_comes_with_verbose(moeify: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "convert", broken)
    done = moeify(f"{CONVERT} --verbose")
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.err
    assert done.err.splitlines()[-1].startswith("moeify: internal error: ZeroDivisionError")


def test_too_little_memory_is_no_bug(moeify: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(api, "convert", too_large)
    expected = "moeify: error: there is not enough memory; free some, or take less: --dtype bf16, fewer --tokens\n"
    assert moeify(CONVERT) == Outcome(1, "", expected)


@pytest.mark.parametrize(
    ("caption", "line", "code", "kind"),
    [
        ("wrong use", "convert model.pt", 2, "UsageError"),
        ("what the parser refuses", "convert model.pt -o out --experts none", 2, "UsageError"),
        ("a bad file", "convert empty.pt -o out", 1, "InputError"),
        ("an output that exists", f"convert model.pt -o old-folder {TINY}", 1, "OutputError"),
    ],
)
def test_with_json_an_error_is_an_object_too(caption: str, line: str, code: int, kind: str, moeify: Run) -> None:
    done = moeify(f"{line} --json")
    assert done.code == code, caption
    assert done.data["error"]["type"] == kind
    assert done.err == f"moeify: error: {done.data['error']['message']}\n"


def test_with_json_a_bug_is_an_object_too(moeify: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "convert", broken)
    done = moeify(f"{CONVERT} --json")
    assert (done.code, done.data) == (1, {"error": {"type": "ZeroDivisionError", "message": "division by zero"}})


def test_the_exit_code_is_the_one_of_the_error(moeify: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnError(ConversionError):
        exit_code = 9

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OwnError("something \x1b[31mred\x1b[0m\n  and more")

    monkeypatch.setattr(api, "convert", fail)
    assert moeify(CONVERT) == Outcome(9, "", "moeify: error: something \\x1b[31mred\\x1b[0m and more\n")


def test_ctrl_c_is_130(moeify: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "convert", interrupt)
    assert moeify(CONVERT) == Outcome(130, "", "moeify: interrupted\n")


def speak() -> None:
    """As other packages do."""
    print("printed")
    print("told", file=sys.stderr)
    warnings.warn("beware", UserWarning, stacklevel=1)
    logging.getLogger("somebody").error("logged")


def test_other_packages_are_not_heard(capsys: pytest.CaptureFixture[str]) -> None:
    with working(Screen()):
        speak()
    assert capsys.readouterr() == ("", "")
    print("heard again")
    assert capsys.readouterr() == ("heard again\n", "")
    assert logging.root.manager.disable == logging.NOTSET


def test_with_verbose_other_packages_speak_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with working(Screen(verbose=True)):
        speak()
    out, err = capsys.readouterr()
    assert out == ""
    assert "printed\ntold\n" in err
    assert "beware" not in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(show: Callable[[str, int, int | None], None]) -> None:
    """What a conversion of two layers reports."""
    show("loading", 0, None)
    for layer in range(2):
        show("converting layers", layer, 2)
        show(f"calibrate {layer}", 10, 30)
    show("converting layers", 2, 2)
    show("writing", 0, None)


def test_tasks_are_over_when_one_further_out_is_heard_of_again() -> None:
    tasks = OpenTasks()

    def hear(task: str, done: int, total: int | None) -> tuple[list[str], list[str]]:
        return tasks.hear(task, done, total), list(tasks.names)

    assert hear("load", 0, None) == ([], ["load"])
    assert hear("layers", 0, 2) == (["load"], ["layers"])
    assert hear("calibrate", 3, 9) == ([], ["layers", "calibrate"])
    assert hear("layers", 1, 2) == (["calibrate"], ["layers"])
    assert hear("layers", 2, 2) == ([], ["layers"])
    assert hear("write", 0, None) == (["layers"], ["write"])


def test_progress_is_told_in_plain_lines_once_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr("moeify.cli.progress.PATIENCE", 0.0)
    report(lines(Screen(err=err)))
    assert [line.partition(" s: ")[2] for line in err.getvalue().splitlines()] == [
        "loading",
        "converting layers (2)",
        "writing",
    ]


def test_a_quick_run_tells_no_progress_and_a_quiet_one_none_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    for screen in (Screen(err=io.StringIO()), Screen(err=Terminal(), quiet=True)):
        with working(screen) as progress:
            report(progress)
        assert isinstance(screen.err, io.StringIO)
        assert screen.err.getvalue() == ""


def test_a_terminal_shows_bars_that_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with bars(terminal) as show:
        report(show)
    assert "writing" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K"), "the last thing done is to erase the line"


def test_numbers_that_json_lacks_become_null() -> None:
    out = io.StringIO()
    Screen(out=out).data({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": (1, None)}})
    assert json.loads(out.getvalue()) == {"a": None, "b": [None, 1.5], "c": {"d": [1, None]}}


def test_tables_set_numbers_right_and_end_without_blanks() -> None:
    out = io.StringIO()
    Screen(out=out).table(("name", "size", "share"), [("a[b]", 12345, 0.5), ("c", None, 1 / 3)])
    assert out.getvalue() == "name    size   share\na[b]  12,345     0.5\nc          -  0.3333\n"


def test_a_narrow_terminal_folds_sentences_and_cuts_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    path, sentence = "model.decoder.layers.17.feed_forward", "folded where a blank is, and nowhere else"
    Screen(out=terminal).table(("path", "reason"), [(path, sentence)])
    head, *lines = terminal.getvalue().splitlines()
    assert head.split() == ["path", "reason"]
    assert lines[0].startswith(path)
    assert " ".join(line.removeprefix(path).strip() for line in lines) == sentence


def test_text_that_the_stream_cannot_show_is_spelt_out() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Screen(out=stream).line("naïve")
    assert raw.getvalue() == b"na\\xefve\n"


def test_a_closed_stream_is_an_error_of_the_output() -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"^the result cannot be printed: No space left on device$"):
        Screen(out=Full()).line("text")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        ((1, 2), "1 2"),
        ({"a": 1}, "a=1"),
        ("x\ny", "x y"),
    ],
)
def test_cells(value: Any, text: str) -> None:
    assert cell(value) == text


def test_a_text_of_several_lines_becomes_one() -> None:
    assert one_line("first\n  second\r\n\n third \t ") == "first second third"
