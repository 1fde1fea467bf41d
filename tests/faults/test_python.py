"""What the user names as pkg.mod:callable: modules that fail, hang, or give the wrong thing."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.command_line import Outcome
from moeify.data.import_limit import VARIABLE, import_limit
from moeify.data.importable import importable
from moeify.errors import InputError, UsageError

Run = Callable[[str], Outcome]

OVER = "took longer than 0.5 s and was ended"

#: caption, the module's text, exit code, what the message says
MODULES: list[tuple[str, str, int, str]] = [
    ("a syntax error", "def make(:", 1, "the factory: importing own failed: SyntaxError: "),
    ("an error of several lines", "raise ValueError('no\\nluck')", 1, "importing own failed: ValueError: no luck"),
    ("a missing package", "import no_such_module", 1, "importing own failed: No module named 'no_such_module'"),
    ("an end of the process", "import sys; sys.exit(4)", 1, "importing own failed: SystemExit: 4"),
    ("a loop without end", "while True: pass", 1, f"the factory: importing own {OVER}; mend the module, or allow more"),
    ("a long sleep", "import time; time.sleep(100)", 1, OVER),
    ("one that swallows errors", "while True:\n  try:\n    while True: pass\n  except Exception: pass", 1, OVER),
    ("one that swallows all once", "try:\n  while True: pass\nexcept BaseException:\n  while True: pass", 1, OVER),
    ("a lock that nobody opens", "import threading; a = threading.Lock(); a.acquire(); a.acquire()", 1, OVER),
    ("a factory that raises", "def make(): raise KeyError('x')", 1, "factory own:make: failed: KeyError: 'x'"),
    ("a factory with arguments", "def make(size): return size", 1, "it is called without arguments"),
    ("a factory that gives nothing", "def make(): pass", 1, "factory own:make: returned a NoneType; it must"),
    ("a class", "import torch\ndef make(): return torch.nn.Linear", 1, "returned a type"),
    ("a state_dict", "import torch\ndef make(): return torch.nn.Linear(2, 2).state_dict()", 1, "returned a OrderedDict"),
    ("a lazy module", "import torch\ndef make(): return torch.nn.LazyLinear(2)", 1, "has no values yet (lazy"),
    (
        "a module on the meta device",
        "import torch\ndef make(): return torch.nn.Linear(2, 2, device='meta')",
        1,
        "no values yet",
    ),
    ("no such name", "def mak(): pass", 2, "own has no 'make' (from 'own:make'): did you mean 'mak'?"),
    ("a number", "make = 3", 1, "factory own:make: is a int; give a callable"),
]


@pytest.fixture(autouse=True)
def forget_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(VARIABLE, "0.5")
    yield
    sys.modules.pop("own", None)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("text", "code", "words"), [m[1:] for m in MODULES], ids=[m[0] for m in MODULES])
def test_a_factory_that_is_none_is_one_line(text: str, code: int, words: str, moeify: Run, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(text, "utf-8")
    done = moeify("convert model.pt -o out --factory own:make --experts 4")
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done
    assert words in done.err
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"model.pt", "own.py"}


@pytest.mark.parametrize("use", ["--example own:make --factory cli.tiny_models:stack", "--calibrate own:make"])
def test_examples_and_data_are_imported_within_the_limit_too(use: str, moeify: Run, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("while True: pass", "utf-8")
    tiny = "--factory cli.tiny_models:stack --example cli.tiny_models:example" if "--calibrate" in use else ""
    done = moeify(f"convert model.pt -o out --experts 4 {tiny} {use}")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done
    assert (
        f"importing own took longer than 0.5 s and was ended; mend the module, or allow more seconds with {VARIABLE}"
        in done.err
    )


@pytest.mark.parametrize("text", ["fast", "-1", "nan", "inf", "1e9"])
def test_a_limit_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UsageError, match=f"^{VARIABLE} is '{text}': give a number of seconds from 0 "):
        importable("cli.tiny_models:stack", "the factory")


@pytest.mark.parametrize("seconds", ["", "0", "100"])
def test_an_import_in_time_goes_through(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, seconds)
    assert importable("cli.tiny_models:number", "the factory")() == 7


def test_an_alarm_of_somebody_else_goes_on() -> None:
    """pytest-timeout's own alarm is put aside, and back, by the test itself."""
    heard: list[int] = []
    before, timer = (
        signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number)),
        signal.setitimer(signal.ITIMER_REAL, 0.3),
    )
    try:
        with import_limit("nothing"):
            pass
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        deadline = time.monotonic() + 20
        while not heard and time.monotonic() < deadline:
            time.sleep(0.01)
        assert heard == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_other_threads_have_no_limit() -> None:
    found: list[str] = []

    def work() -> None:
        with import_limit("nothing"):
            found.append("ran")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["ran"]


def test_what_was_ended_can_be_imported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("while True: pass", "utf-8")
    with pytest.raises(InputError, match="took longer"):
        importable("own:make", "the factory")
    (tmp_path / "own.py").write_text("make = list", "utf-8")
    assert importable("own:make", "the factory") is list
