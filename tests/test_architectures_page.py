"""The page of architectures says what the golden texts say."""

from __future__ import annotations

from architectures_page import PAGE, Summary, page
from zoo import ZOO


def test_the_page_is_up_to_date() -> None:
    command = "run python tests/architectures_page.py"
    assert PAGE.read_text(encoding="utf-8") == page(), f"{PAGE.name} is stale: {command}"


def test_the_rows_are_what_the_zoo_expects() -> None:
    """The texts are read as they are meant: numbers and ways against the zoo's own table."""
    golden = PAGE.parent.parent / "tests" / "golden" / "sites"
    for name, make in ZOO.items():
        zoo, summary = make(), Summary.of((golden / f"{name}.txt").read_text(encoding="utf-8"))
        assert summary.found == len(zoo.sites)
        assert set(summary.kinds) == {site[1] for site in zoo.sites}
        assert set(summary.activations) == {site[2] for site in zoo.sites}
        assert {way.partition(",")[0] for way in summary.ways} == ({zoo.way} if zoo.way else set())


def test_a_text_of_every_form_is_read() -> None:
    summary = Summary.of(
        "SomeModel\n"
        "3 x a.*: gated silu 32 -> 64 -> 32, submodule\n"
        "1 x b.*.c: two-matrix gelu 32 -> 64 -> 32, identity, over dim 1, 3 calls\n"
        "2 x d.*: refused, its hidden values are used elsewhere\n"
        "refused, it cannot be traced\n"
    )
    assert summary == Summary(
        4,
        ("gated", "two-matrix"),
        ("silu", "gelu"),
        ("submodule", "identity, 1x1 convolutions"),
        ("its hidden values are used elsewhere", "it cannot be traced"),
    )
