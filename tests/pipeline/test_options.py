from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installed import install
from moeify.errors import UsageError
from moeify.pipeline.offers import STRATEGIES, find_offers
from moeify.pipeline.options import (
    contract_of,
    from_options,
    option_default,
    option_types,
    strategies,
    to_options,
    type_text,
)
from pipeline.roads import Far, Open, Plain, Way


@dataclass(frozen=True)
class Weighted:
    weight: float = 1.0

    kind: ClassVar[str] = "weighted"


@dataclass(frozen=True)
class Sample:
    """Options of every type that passes use."""

    count: int = 1
    share: float = 0.5
    flag: bool = False
    text: str = ""
    rule: Literal["one", "softmax"] = "one"
    limit: int | None = None
    memory: int | str = "1GiB"
    by: Plain | Weighted = field(default_factory=Plain)


@dataclass(frozen=True)
class Needy:
    size: int


@dataclass(frozen=True)
class Bare:
    pass


@pytest.mark.parametrize(
    ("caption", "options", "expected"),
    [
        ("nothing given: the defaults", {}, Sample()),
        ("a whole number for a float becomes one", {"share": 1}, Sample(share=1.0)),
        ("a word of a closed list", {"rule": "softmax"}, Sample(rule="softmax")),
        ("a number where none is allowed too", {"limit": 3}, Sample(limit=3)),
        ("the word none", {"limit": "none"}, Sample(limit=None)),
        ("one of two types", {"memory": 1024}, Sample(memory=1024)),
        ("a strategy by its kind alone", {"by": "weighted"}, Sample(by=Weighted())),
        ("a strategy with options", {"by": {"kind": "weighted", "weight": 2}}, Sample(by=Weighted(2.0))),
    ],
)
def test_plain_values_become_options(caption: str, options: dict[str, Any], expected: Sample) -> None:
    made = from_options(Sample, options, "sample")
    assert made == expected, caption
    assert all(type(getattr(made, name)) is type(getattr(expected, name)) for name in option_types(Sample)), caption


@pytest.mark.parametrize(
    ("caption", "kind", "options", "message"),
    [
        ("a misspelt option", Sample, {"shar": 1.0}, "sample has no option 'shar': did you mean 'share'?"),
        (
            "an option unlike any", Sample, {"zzz": 1},
            "sample has no option 'zzz': known: by, count, flag, limit, memory, rule, share, text",
        ),
        ("an option of what has none", Bare, {"x": 1}, "sample has no option 'x': it takes no options"),
        ("a text for a number", Sample, {"count": "many"}, "sample.count is 'many': give int"),
        ("a fraction for a whole number", Sample, {"count": 1.5}, "sample.count is 1.5: give int"),
        ("yes for a number", Sample, {"count": True}, "sample.count is True: give int"),
        ("yes for a fraction", Sample, {"share": True}, "sample.share is True: give float"),
        ("a number for yes or no", Sample, {"flag": 1}, "sample.flag is 1: give bool"),
        ("none where a value must be", Sample, {"count": None}, "sample.count is None: give int"),
        ("a word outside the list", Sample, {"rule": "soft"}, "sample.rule is 'soft': give one or softmax"),
        ("a list", Sample, {"limit": [1]}, "sample.limit is [1]: give int or none"),
        ("an unknown strategy", Sample, {"by": "weihted"}, "sample.by has no strategy 'weihted': did you mean 'weighted'?"),
        (
            "a strategy without a kind", Sample, {"by": {}},
            "sample.by names no kind of strategy: give {kind = ...} with plain or weighted",
        ),
        (
            "an option of another strategy", Sample, {"by": {"kind": "plain", "weight": 1}},
            "sample.by has no option 'weight': it takes no options",
        ),
        ("a number for a strategy", Sample, {"by": 3}, "sample.by is 3: give plain or weighted"),
        ("a missing option", Needy, {}, "sample.size is missing: it has no default"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_by_name_and_value(
    caption: str, kind: type[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        from_options(kind, options, "sample")
    assert str(error.value) == message, caption


@given(
    st.builds(
        Sample,
        count=st.integers(),
        share=st.floats(allow_nan=False),
        flag=st.booleans(),
        text=st.text(),
        rule=st.sampled_from(["one", "softmax"]),
        limit=st.none() | st.integers(),
        memory=st.integers() | st.text(),
        by=st.just(Plain()) | st.builds(Weighted, st.floats(allow_nan=False)),
    )
)
def test_options_go_to_plain_data_and_back(sample: Sample) -> None:
    assert from_options(Sample, to_options(sample), "sample") == sample


def test_types_defaults_and_strategies_are_told() -> None:
    types = option_types(Sample)
    assert {name: type_text(annotation) for name, annotation in types.items()} == {
        "count": "int",
        "share": "float",
        "flag": "bool",
        "text": "str",
        "rule": "one or softmax",
        "limit": "int or none",
        "memory": "int or str",
        "by": "plain or weighted",
    }
    assert option_default(Sample, "count") == 1
    assert option_default(Sample, "by") == Plain()
    assert option_default(Needy, "size") is MISSING
    assert strategies(types["by"]) == {"plain": Plain, "weighted": Weighted}
    assert strategies(types["limit"]) == {}


def offer(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    points = {STRATEGIES: dict.fromkeys(names, "pipeline.roads:Far")}
    install(folder, monkeypatch, "roads", points)


def test_an_open_option_takes_strategies_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch, "open.by.far")
    made = from_options(Open, {"by": {"kind": "far", "miles": 3}}, "open", find_offers())
    assert made == Open(by=Far(3))
    assert from_options(Open, {"by": Far(2)}, "open") == Open(by=Far(2)), "an instance needs no entry point"
    assert to_options(made) == {"by": {"kind": "far", "miles": 3}}
    annotation = option_types(Open)["by"]
    assert contract_of(annotation) is Way
    assert (type_text(annotation), type_text(annotation, ["far"])) == ("plain", "plain or far")


@pytest.mark.parametrize(
    ("caption", "names", "kind", "value", "message"),
    [
        ("nothing installed", (), Open, "far", "by has no strategy 'far': known: plain"),
        ("a misspelt name", ("sample.by.far",), Open, "fahr", "by has no strategy 'fahr': did you mean 'far'?"),
        ("an offer for another option", ("sample.with.far",), Open, "far", "by has no strategy 'far': known: plain"),
        ("an offer for a closed option", ("sample.by.far",), Sample, "far", "by has no strategy 'far': known: plain, weighted"),
        ("a number", ("sample.by.far",), Open, 3, "by is 3: give plain or far"),
        ("an option that it has not", ("sample.by.far",), Open, {"kind": "far", "mile": 1},
         "by has no option 'mile': did you mean 'miles'?"),
        ("a wrong type", ("sample.by.far",), Open, {"kind": "far", "miles": "x"}, "by.miles is 'x': give int"),
    ],
)  # fmt: skip
def test_what_no_package_offers_there_is_refused(
    caption: str,
    names: tuple[str, ...],
    kind: type[Any],
    value: Any,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer(tmp_path, monkeypatch, *names)
    with pytest.raises(UsageError) as error:
        from_options(kind, {"by": value}, "sample", find_offers())
    assert str(error.value) == f"sample.{message}", caption


def test_an_offered_strategy_of_a_name_that_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch, "open.by.plain")
    with pytest.raises(UsageError) as error:
        from_options(Open, {"by": "plain"}, "open", find_offers())
    assert str(error.value) == (
        "the strategy 'plain' of open.by comes from moeify itself and from roads 1.0: uninstall roads 1.0, or rename it there"
    )
