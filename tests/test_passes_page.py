"""The page of passes says what the code says."""

from __future__ import annotations

from passes_page import PAGE, page


def test_the_page_of_passes_is_up_to_date() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "run python tests/passes_page.py"
