"""Text cut as those who embed texts meet it: paragraphs, and pieces of a few words."""

from __future__ import annotations

import random
from collections.abc import Iterator

#: Characters of a line that is a paragraph, more than.
_PARAGRAPH = 100
#: Words of pieces, each as likely: titles and queries, and sentences.
_WORDS = (1, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def short_texts(text: str, draw: random.Random) -> Iterator[str]:
    """The paragraphs of a text, which are its long lines, or all of it where none is long: a coin says which stay whole and
    which are cut to pieces of 1 to 32 words."""
    lines = [line for line in map(str.strip, text.splitlines()) if len(line) > _PARAGRAPH]
    for paragraph in lines or [" ".join(text.split())]:
        words = paragraph.split()
        whole = draw.random() < 0.5
        while words:
            length = len(words) if whole else draw.choice(_WORDS)
            yield " ".join(words[:length])
            del words[:length]
