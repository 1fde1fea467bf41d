"""Golden texts: `pytest --update-golden` writes them anew. Tests of one architecture share a process, which traces it once.

The fast tier (`-m "not slow"`) sees few architectures, and of a function marked `sampled` the first case.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from zoo import ZOO

GOLDEN = Path(__file__).parent / "golden"

#: Architectures of the fast tier: two matrices and gated, encoder, decoder and both, texts and pictures.
IN_THE_FAST_TIER = {"llama", "gpt2", "bert", "t5", "vit", "decoder"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew instead of comparing with it")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    sampled: set[tuple[Path, str]] = set()
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("sampled"):
            function = (item.path, item.originalname)
            if function in sampled:
                item.add_marker(pytest.mark.slow)
            sampled.add(function)
        if item.get_closest_marker("xdist_group") or not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            continue
        for value in item.callspec.params.values():
            if isinstance(value, str) and value in ZOO:
                item.add_marker(pytest.mark.xdist_group(f"zoo-{value}"))
                if value not in IN_THE_FAST_TIER:
                    item.add_marker(pytest.mark.slow)
                break


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden(name, text): the text equals tests/golden/<name>; with --update-golden it is written there."""
    update = bool(request.config.getoption("--update-golden"))

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing: run pytest --update-golden and read what it writes"
        assert text == path.read_text(encoding="utf-8")

    return compare
