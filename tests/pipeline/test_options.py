from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeify.errors import UsageError
from moeify.pipeline.options import from_options, option_default, option_types, strategies, to_options, type_text


@dataclass(frozen=True)
class Plain:
    kind: ClassVar[str] = "plain"


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
        ("a strategy without a kind", Sample, {"by": {}}, "sample.by has no strategy None: known: plain, weighted"),
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
