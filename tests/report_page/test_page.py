"""The page's text: what it says, that nothing of it comes from elsewhere, and that no text breaks out of its place."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from moeify.export.evaluations import Quality
from moeify.report_page.page import Contents, figure, first_line, render, size
from report_page.pages import HOSTILE, PATHS, Reader, bare, full

SECTIONS = ["layers", "errors", "load", "entropy", "co-activation", "quality", "speed", "origin"]


@pytest.fixture(scope="module")
def page() -> Reader:
    return Reader(render(full()))


def test_every_section_has_a_heading_and_a_way_to_it(page: Reader) -> None:
    assert [section["id"] for section in page.of("section")] == SECTIONS
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {section["aria-labelledby"] for section in page.of("section")} <= set(ids)
    assert [link["href"] for link in page.of("a")] == [f"#{name}" for name in SECTIONS]


def test_nothing_is_taken_from_elsewhere(page: Reader) -> None:
    assert not {"script", "img", "iframe", "object", "embed", "image", "use", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "xlink:href", "data", "action", "poster"):
                assert (value or "").startswith(("#", "data:,")), (tag, name, value)
            assert not name.startswith("on"), (tag, name)
            assert "http" not in (value or "") or name == "http-equiv", (tag, name, value)
    assert not re.search(r"url\(|@import|https?:", page.css)
    assert page.of("meta")[3]["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_texts_of_model_and_data_stay_texts() -> None:
    plain, hostile = Reader(render(full(HOSTILE, HOSTILE))), Reader(render(full()))
    shape = [tag for tag, _ in hostile.tags]
    assert [tag for tag, _ in plain.tags] == shape
    assert plain.text.count(HOSTILE) > 15
    assert not any(name.startswith("on") for _, attributes in plain.tags for name in attributes)


def test_pictures_have_words(page: Reader) -> None:
    for svg in page.of("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and len(svg["aria-label"] or "") > 15), svg
    assert page.text.count("Heat map") == 1
    assert len(page.of("caption")) == len(page.of("table")) == 5
    for box in page.of("div"):
        if box.get("class") == "scroll":
            assert (box["tabindex"], box["role"]) == ("0", "region")
            assert box["aria-label"]


def test_figures_are_those_of_the_contents(page: Reader) -> None:
    words = " ".join(page.text.split())
    for text in ("50.0 %", "40.0 %", "123 M", "123,456,789", "top 3 of 8", "0.0400", "0.0500", "41.0", "2.04", "0.80", "1.60"):
        assert text in words, text
    assert all(path in words for path in PATHS)
    assert "expert 7: 66.7% of tokens" in words
    assert "chosen by no token: 6 of 96 experts" in words
    assert "void: over its budget" in words


def test_what_was_not_measured_says_how_to_get_it() -> None:
    contents = bare()
    page = Reader(render(contents))
    assert contents.left_out == ("errors", "load", "entropy", "co-activation", "quality", "speed")
    assert not page.of("svg")
    words = " ".join(page.text.split())
    for command in ("moeify report my-moe --force --data TEXT", "--calibrate TEXT", "--sweep sweep/", "--bench bench.json"):
        assert command in words
    assert not full().left_out


def test_evaluations_that_the_folder_keeps_are_shown() -> None:
    rows = (Quality("other.txt", 50_944, 19.71, 37.37, 1.896, 0.4946), Quality(HOSTILE, 100, None, 1234.5, None, None))
    contents = replace(bare(), folder=replace(bare().folder, quality=rows))
    page = Reader(render(contents))
    words = " ".join(page.text.split())
    assert "Perplexity of this folder's model on texts" in words
    assert "other.txt50,94449.5 %19.737.41.90" in words  # cells
    assert f"{HOSTILE}100--1,234-" in words
    assert "--record" not in words
    assert "moeify evaluate my-moe --data TEXT --dense MODEL --record" in " ".join(Reader(render(bare())).text.split())


def test_commands_take_any_name_of_a_folder() -> None:
    words = " ".join(Reader(render(bare("my moe; rm x"))).text.split())
    assert "moeify report 'my moe; rm x' --force --data TEXT" in words
    assert "moeify bench 'my moe; rm x' --json" in words


def test_equal_contents_give_equal_text() -> None:
    assert render(full()) == render(full())


def told(contents: Contents, **changes: Any) -> tuple[str, str]:
    return first_line(replace(contents, folder=replace(contents.folder, **changes)))


def test_the_first_line_says_what_matters_most() -> None:
    contents = full()
    tone, text = first_line(contents)
    assert (tone, text[:41]) == ("good", "The conversion beats a static mask of as ")
    assert told(contents, budget=0.3)[0] == "bad"
    assert told(contents, budget=0.3)[1].startswith("Void: on this data a token uses 40.0%")
    assert told(contents, verdict="the conversion loses") == ("bad", "The conversion loses.")
    exact = tuple(replace(layer, errors={"converted": 0.0, "static-mask": 0.0}) for layer in contents.folder.layers)
    assert told(contents, layers=exact)[1].startswith("The layers compute what the dense ones compute")
    fixed = tuple(replace(layer, chooses=False) for layer in contents.folder.layers)
    assert told(contents, layers=fixed)[1].startswith("The layers do not route")
    assert first_line(bare())[1].startswith("Not judged")


@pytest.mark.parametrize(
    ("value", "text"),
    [(950, "950"), (45_200, "45.2 k"), (22_787_040, "22.8 M"), (134_500_000, "134 M"), (7_240_000_000, "7.24 B")],
)  # fmt: skip
def test_sizes(value: int, text: str) -> None:
    assert size(value) == text


def test_figures() -> None:
    assert [figure(value) for value in (None, 0.00213, 0.3, 12.0, 123.4, 45_678.0)] == [
        "-",
        "0.00213",
        "0.300",
        "12.0",
        "123",
        "45,678",
    ]
