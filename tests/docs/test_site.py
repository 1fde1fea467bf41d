"""The site of docs/ is built with warnings as errors, leads nowhere that is not there, and takes nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]


#: Without the notice of the theme about the future of MkDocs.
QUIET = {"NO_MKDOCS_2_WARNING": "1"}


def built(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", str(config)]
    return subprocess.run(
        [*line, "--site-dir", str(folder)], capture_output=True, text=True, check=False, env={**os.environ, **QUIET}
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = built(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


class Links(HTMLParser):
    """ids of a page, where its links lead, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if (name := found.get("id") or found.get("name")) is not None:
            self.ids.add(name)
        if tag == "a" and (href := found.get("href")):
            self.links.append(href)
        for name in ("src", "srcset", "data"):
            if value := found.get(name):
                self.loaded.append(value)
        if tag == "link" and (href := found.get("href")):
            self.loaded.append(href)


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    return {path: Links(path.read_text("utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Links]) -> None:
    dead, followed = [], 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto"):
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            followed += 1
            if not target.exists() or (parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids):
                dead.append((path.relative_to(site).as_posix(), link))
    assert not dead
    assert followed > 1000


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Links]) -> None:
    assert not [(path.name, each) for path, page in pages.items() for each in page.loaded if re.match(r"(https?:)?//", each)]
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text("utf-8")), sheet


def test_every_page_is_in_the_navigation_and_every_public_name_in_the_reference(site: Path, pages: dict[Path, Links]) -> None:
    import moeify

    start = pages[site / "index.html"]
    reached = {(site / unquote(urlsplit(link).path)).resolve() for link in start.links}
    docs = {site / path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert docs <= reached | {site / "index.html"}
    ids = pages[site / "reference" / "python.html"].ids | pages[site / "reference" / "passes.html"].ids
    listed = {name.rpartition(".")[2] for name in ids}
    assert set(moeify.__all__) - {"__version__"} <= listed


def test_files_of_the_repository_are_pages_of_the_site(site: Path) -> None:
    text = (site / "repository" / "examples" / "cpp" / "next_token.cpp.html").read_text("utf-8")
    assert "usage: next_token" in text
    assert "moeify_example_plugin/prune_experts.py" in (site / "repository" / "examples" / "plugin.html").read_text("utf-8")


def test_a_link_to_nothing_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A page\n\n[gone](../examples/gone.py)\n", "utf-8")
    (tmp_path / "mkdocs.yml").write_text(f"site_name: it\nhooks: [{ROOT / 'docs' / 'site_hooks.py'}]\n", "utf-8")
    done = built(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    assert "index.md: the link ../examples/gone.py leads to nothing" in done.stderr
