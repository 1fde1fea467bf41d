"""The journal of an unfinished conversion: what it keeps, for whom, and when it goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from converted import opened
from moeify.errors import ConversionError, InputError, OutputError, UsageError
from moeify.export.journal import journal_beside
from moeify.ir.feed_forward import FeedForward
from moeify.ir.moe_spec import MoESpec
from moeify.pipeline.finished import FinishedLayer

KEY = {"model": {"name": "m", "digests": {"m.pt": "ab"}}, "recipe": "seed = 0\n"}
LAYER = FinishedLayer(MoESpec((torch.tensor([1, 0]),)), {"error": 0.1 + 0.2, "none": None}, ("a note",))


@pytest.fixture(scope="module")
def sites() -> tuple[FeedForward, ...]:
    return opened("residual-stack")[1].host.find()[0]


def interrupted(output: Path, *sites: FeedForward, stop: BaseException | None = None) -> BaseException:
    """A run that finishes those sites and is then ended; gives what ended it."""
    stop = stop or KeyboardInterrupt()
    try:
        with journal_beside(output) as journal:
            journal.begin(KEY, resume=False)
            for site in sites:
                journal.keep(site, LAYER)
            raise stop
    except type(stop) as error:
        return error


def test_a_layer_comes_back_as_it_was_kept(tmp_path: Path, sites: tuple[FeedForward, ...]) -> None:
    ended = interrupted(tmp_path / "out", sites[0])
    assert ended.__notes__ == ["1 finished layers are kept: the same command with --resume goes on from there"]
    with journal_beside(tmp_path / "out") as journal:
        journal.begin(KEY, resume=True)
        found = journal.find(sites[0])
        assert found is not None
        assert found.spec is not None
        assert torch.equal(found.spec.experts[0], torch.tensor([1, 0]))
        assert (found.measured, found.notes) == (LAYER.measured, LAYER.notes)
        assert journal.find(sites[1]) is None
        assert journal.resumed == 1
    assert os.listdir(tmp_path) == []


def test_a_layer_that_stays_dense_is_finished_too(tmp_path: Path, sites: tuple[FeedForward, ...]) -> None:
    with journal_beside(tmp_path / "out") as journal:
        journal.begin(KEY, resume=False)
        journal.keep(sites[0], FinishedLayer(None, {}))
        found = journal.find(sites[0])
        assert found is not None
        assert found.spec is None


def test_without_resume_what_was_finished_is_forgotten(tmp_path: Path, sites: tuple[FeedForward, ...]) -> None:
    interrupted(tmp_path / "out", sites[0])
    with journal_beside(tmp_path / "out") as journal:
        journal.begin(KEY, resume=False)
        assert journal.find(sites[0]) is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_layer_is_not_finished(damage: str, tmp_path: Path, sites: tuple[FeedForward, ...]) -> None:
    interrupted(tmp_path / "out", *sites)
    path = next((tmp_path / ".out.moeify-journal").glob("layer-*"))
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"cut": content[:-1], "flipped": flipped, "empty": b""}[damage])
    with journal_beside(tmp_path / "out") as journal:
        journal.begin(KEY, resume=True)
        assert [journal.find(site) is None for site in sites].count(True) == 1


def test_another_conversion_is_not_gone_on_with(tmp_path: Path, sites: tuple[FeedForward, ...]) -> None:
    interrupted(tmp_path / "out", sites[0])
    for key, named in (
        ({**KEY, "recipe": "seed = 1\n"}, "its recipe differ"),
        ({**KEY, "seed": 1, "model": {}}, "model and seed"),
    ):
        with pytest.raises(OutputError, match=f"{named}.*leave out --resume"), journal_beside(tmp_path / "out") as journal:
            journal.begin(key, resume=True)
    with journal_beside(tmp_path / "out") as journal:
        journal.begin(KEY, resume=True)
        assert journal.find(sites[0]) is not None, "what was finished is still there after a refusal"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000], ids=["empty", "list", "cut", "latin", "deep"])
def test_a_journal_that_cannot_be_read_is_begun_anew(content: bytes, tmp_path: Path, sites: tuple[FeedForward, ...]) -> None:
    interrupted(tmp_path / "out", sites[0])
    (tmp_path / ".out.moeify-journal" / "journal.json").write_bytes(content)
    with journal_beside(tmp_path / "out") as journal:
        journal.begin(KEY, resume=True)
        assert journal.find(sites[0]) is None


STAYS: list[tuple[BaseException, bool]] = [
    (KeyboardInterrupt(), True), (OutputError("full"), True), (MemoryError(), True),
    (ConversionError("too far"), False), (InputError("no text"), False), (UsageError("no such option"), False),
]  # fmt: skip


@pytest.mark.parametrize(("stop", "stays"), STAYS, ids=[type(error).__name__ for error, _ in STAYS])
def test_the_journal_stays_where_a_second_try_may_go_further(
    stop: BaseException, stays: bool, tmp_path: Path, sites: tuple[FeedForward, ...]
) -> None:
    interrupted(tmp_path / "out", sites[0], stop=stop)
    assert os.listdir(tmp_path) == ([".out.moeify-journal"] if stays else [])


def test_a_run_that_ends_before_it_begins_leaves_the_earlier_one_alone(tmp_path: Path, sites: tuple[FeedForward, ...]) -> None:
    interrupted(tmp_path / "out", sites[0])
    for stop in (InputError("no model"), KeyboardInterrupt()):
        with pytest.raises(type(stop)), journal_beside(tmp_path / "out"):
            raise stop
    with journal_beside(tmp_path / "out") as journal:
        journal.begin(KEY, resume=True)
        assert journal.find(sites[0]) is not None


def test_nothing_stays_where_nothing_was_finished(tmp_path: Path) -> None:
    ended = interrupted(tmp_path / "deep" / "out")
    assert not hasattr(ended, "__notes__")
    assert os.listdir(tmp_path / "deep") == []


def test_two_runs_never_convert_to_one_output(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("out")
    with journal_beside(tmp_path / "out") as journal:
        journal.begin(KEY, resume=False)
        for name in ("out", "link"):
            with pytest.raises(OutputError, match="another conversion is writing it"), journal_beside(tmp_path / name):
                pass
        with journal_beside(tmp_path / "other"):
            pass
    with journal_beside(tmp_path / "out") as journal:
        journal.begin(KEY, resume=True)


def test_a_full_disk_is_one_line(tmp_path: Path, sites: tuple[FeedForward, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, os.strerror(28))

    def run() -> None:
        with journal_beside(tmp_path / "out") as journal:
            journal.begin(KEY, resume=False)
            monkeypatch.setattr(Path, "write_bytes", full)
            journal.keep(sites[0], LAYER)

    with pytest.raises(OutputError, match="out: cannot be written: No space left"):
        run()
    assert os.listdir(tmp_path) == []
