"""Chromium, as the machine has it; nothing is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window. Where the machine has none the test is skipped on a laptop and fails in CI."""
    path = next((found for name in NAMES if (found := shutil.which(name)) is not None), None)
    if path is None:
        reason = f"no browser: install one of {', '.join(NAMES)} by your distribution's packages"
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


#: Elements with text of their own whose contrast with what is behind them is below 4.5 (WCAG 2.2, 1.4.3): (text, ratio).
FAINT = """() => {
  const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = node => {
    for (let at = node; at; at = at.parentElement) {
      const back = parse(getComputedStyle(at).backgroundColor);
      if (back[3] === 1) return back;
      if (back[3] !== 0) throw new Error('half-transparent background of ' + at.outerHTML.slice(0, 99));
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  let seen = 0;
  for (const node of document.body.querySelectorAll('*')) {
    const own = [...node.childNodes].filter(c => c.nodeType === 3).map(c => c.data.trim()).join('');
    if (!own || node.closest('title') || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(parse(node.namespaceURI.endsWith('svg') ? style.fill : style.color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen += 1;
    if (ratio < 4.5) found.push([own.slice(0, 40), ratio]);
  }
  return {seen, found};
}"""
