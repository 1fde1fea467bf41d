"""What the site needs beside the pages: files of the repository that pages link to become pages of the site themselves, so that
the same links work in both."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

#: Where such files stand in the site.
PLACE = "repository"

_LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]*)(?=[)#])")
_LANGUAGES = {".py": "python", ".cpp": "cpp", ".toml": "toml", ".jsonl": "json", ".md": "markdown", ".sh": "sh"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for every file or folder outside of docs/ that a page links to. Raises PluginError for a link to nothing."""
    found: dict[str, Path] = {}
    for file in files.documentation_pages():
        text = Path(file.abs_src_path or "").read_text("utf-8")
        for target in _LINK.findall(text):
            if (outside := _outside(target, file.src_uri, config)) is not None:
                found[_place(outside, config)] = outside
    for place, path in sorted(found.items()):
        page = File.generated(config, place, content=_page(path, config), inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the repository to their pages."""

    def moved(match: re.Match[str]) -> str:
        outside = _outside(match[1], page.file.src_uri, config)
        if outside is None:
            return match[1]
        return os.path.relpath(_place(outside, config), Path(page.file.src_uri).parent).replace(os.sep, "/")

    return markdown if page.file.src_uri.startswith(f"{PLACE}/") else _LINK.sub(moved, markdown)


def _outside(target: str, page: str, config: MkDocsConfig) -> Path | None:
    """The file that the link of that page leads to; None where it stands in docs/."""
    docs = Path(config.docs_dir)
    path = (docs / page).parent.joinpath(target).resolve()
    if path.is_relative_to(docs):
        return None
    if not path.is_relative_to(docs.parent) or not path.exists():
        raise PluginError(f"{page}: the link {target} leads to nothing")
    return path


def _place(path: Path, config: MkDocsConfig) -> str:
    return f"{PLACE}/{path.relative_to(Path(config.docs_dir).parent).as_posix()}.md"


def _page(path: Path, config: MkDocsConfig) -> str:
    """The file as a block of code, or the names of the folder's files."""
    name = path.relative_to(Path(config.docs_dir).parent).as_posix()
    if path.is_dir():
        inside = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        return f"# {name}/\n\nA folder of the repository:\n\n" + "".join(f"- `{each}`\n" for each in inside)
    text = path.read_text("utf-8")
    fence = "`" * max(4, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"# {name}\n\nA file of the repository.\n\n{fence}{_LANGUAGES.get(path.suffix, 'text')}\n{text}\n{fence}\n"
