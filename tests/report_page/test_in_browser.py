"""The page as Chromium shows it: nothing is asked of the network, nothing is cut off, all can be read in both schemes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page

from moeify.report_page.page import render
from report_page.browser import FAINT, chromium
from report_page.pages import HOSTILE, bare, full

pytestmark = pytest.mark.xdist_group("browser")

Scheme = Literal["light", "dark"]

PAGES = {"full": full(), "bare": bare(), "hostile": full(HOSTILE, HOSTILE)}
SECTIONS = 8

#: Elements that are wider inside than outside, but for boxes that scroll.
OVERFLOWING = """() => [...document.body.querySelectorAll('*')].filter(
  e => e.scrollWidth > e.clientWidth + 1 && !e.closest('.scroll, pre, svg') && getComputedStyle(e).display != 'inline'
).map(e => e.outerHTML.slice(0, 99))"""

PICTURES = """() => [...document.querySelectorAll('svg')].filter(s => s.getClientRects().length).map(s => {
  const box = s.getBoundingClientRect();
  return {width: box.width, height: box.height, marks: s.querySelectorAll('*').length};
})"""

SMALLEST = """() => Math.min(...[...document.querySelectorAll('svg text')].filter(t => t.getClientRects().length).map(
  t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a
))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, contents in PAGES.items():
        (folder / f"{name}.html").write_text(render(contents), "utf-8")
    return {name: folder / f"{name}.html" for name in PAGES}


def opened(browser: Browser, file: Path, width: int, scheme: Scheme) -> tuple[Page, list[str]]:
    """The page, and what must not happen, as it happens: messages of the console, errors, requests but for the file itself."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: None if request.url == file.as_uri() else trouble.append(f"request: {request.url}"))
    page.goto(file.as_uri(), wait_until="load")
    return page, trouble


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_the_page_fits_is_still_and_can_be_read(
    browser: Browser, files: dict[str, Path], name: str, width: int, scheme: Scheme
) -> None:
    page, trouble = opened(browser, files[name], width, scheme)
    try:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(OVERFLOWING) == []
        boxes = [section.bounding_box() for section in page.locator("section").all()]
        assert len(boxes) == SECTIONS
        assert all(box is not None and box["width"] > width * 0.8 and box["height"] > 80 for box in boxes)
        text = page.evaluate(FAINT)
        assert text["seen"] > (60 if name == "bare" else 200)
        assert text["found"] == []
        assert trouble == []
    finally:
        page.close()


def test_every_picture_shows_something(browser: Browser, files: dict[str, Path]) -> None:
    for width in (375, 1280):
        page, _ = opened(browser, files["full"], width, "light")
        sizes: list[dict[str, Any]] = page.evaluate(PICTURES)
        assert len(sizes) > 40
        assert all(size["width"] >= 20 and size["height"] >= 9 and size["marks"] for size in sizes)
        assert page.evaluate(SMALLEST) >= 10
        page.close()


def test_light_and_dark_are_two_pictures_and_paper_is_light(browser: Browser, files: dict[str, Path]) -> None:
    pictures, backgrounds = [], []
    for scheme in ("light", "dark"):
        page, _ = opened(browser, files["full"], 1280, scheme)
        pictures.append(page.screenshot())
        page.emulate_media(media="print")
        backgrounds.append(page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--surface')"))
        page.close()
    assert pictures[0] != pictures[1]
    assert all(struct.unpack(">2I", picture[16:24]) == (1280, 800) for picture in pictures)
    assert backgrounds == ["#ffffff", "#ffffff"]


def test_the_keyboard_reaches_every_box_that_scrolls(browser: Browser, files: dict[str, Path]) -> None:
    page, _ = opened(browser, files["full"], 375, "light")
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"))
    labels = {box.get_attribute("aria-label") for box in page.locator(".scroll").all()}
    assert len(labels) == 3
    assert labels | {"Layers", "The recipe, every option"} <= reached
    page.close()
