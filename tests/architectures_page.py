"""docs/architectures.md, made of the golden texts: `python tests/architectures_page.py` writes it anew."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "architectures.md"

_HEAD = """# Architectures

What `moeify inspect` finds in small random models of each architecture (one to three layers, hence the small numbers), and
how the converted model holds the MoE layer ([four ways](decisions/0001-four-ways-of-rewriting.md)). Tests convert every one of
them: with all experts on it computes what the dense model did (largest difference at most 3e-5 of the largest output), writes
the same greedy tokens where it writes text, and comes back from its folder as it was. Feed-forward networks (FFNs) are found
by what the traced graph computes, not by name; a model that is not listed is found the same way. A model whose forward
branches on its data cannot be traced: it ends in one line that says so.

This page is written by `python tests/architectures_page.py` from the golden texts of the tests.
"""

_ZOO = """
## The zoo

ONNX: the converted model (of one without FFNs the dense one) is exported and compared in ONNX Runtime at other batch and
sequence sizes.

| architecture | FFNs | kind | activation | way | refused | ONNX |
| --- | --- | --- | --- | --- | --- | --- |
"""

_TYPES = """
## Further model types of transformers

Built by name with shrunken configs. None of these is exported to ONNX by a test.

| model type | class | FFNs | kind | activation | way | refused |
| --- | --- | --- | --- | --- | --- | --- |
"""

_SITE = re.compile(r"(?:(\d+) x )?.*: (gated|two-matrix) (\S+) \d+ -> \d+ -> \d+(?:, (\w+)(, over dim 1)?)?(?:, \d+ calls)?")
_WAY = re.compile(r"  rewrite = (\w+)\(.*?\).*?(, over dim 1)?")
_REFUSED = re.compile(r"(?:(?:(\d+) x )?.*: )?refused, (.*)")


@dataclass(frozen=True)
class Summary:
    """What a golden text says of one model."""

    found: int
    kinds: tuple[str, ...]
    activations: tuple[str, ...]
    ways: tuple[str, ...]
    refused: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Summary:
        sites = [match for line in text.splitlines() if (match := _SITE.fullmatch(line))]
        ways = [match for line in text.splitlines() if (match := _WAY.fullmatch(line))]
        reasons = [match for line in text.splitlines() if (match := _REFUSED.fullmatch(line))]
        return cls(
            sum(int(match[1] or 1) for match in sites),
            _each(match[2] for match in sites),
            _each(match[3] for match in sites),
            _each([_way(match[4], match[5]) for match in sites if match[4]] + [_way(match[1], match[2]) for match in ways]),
            _each(match[2].replace("|", "/") for match in reasons),
        )

    @property
    def cells(self) -> list[str]:
        parts = (self.kinds, self.activations, self.ways)
        return [str(self.found), *(", ".join(part) or "-" for part in parts), "; ".join(self.refused) or "-"]


def _way(way: str, channels: str | None) -> str:
    return f"{way}, 1x1 convolutions" if channels else way


def _each(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def page() -> str:
    """The whole page."""
    return "".join([_HEAD, _ZOO, *_zoo_rows(), _TYPES, *_type_rows()])


def _zoo_rows() -> Iterator[str]:
    from zoo import EXPORTED, ZOO
    from zoo_huggingface import ARCHITECTURES

    for name in ZOO:
        summary = Summary.of((TESTS / "golden" / "sites" / f"{name}.txt").read_text(encoding="utf-8"))
        what = f"{name} ({ARCHITECTURES[name].model})" if name in ARCHITECTURES else f"{name} (of our own)"
        yield _row([what, *summary.cells, "checked" if name in EXPORTED else "-"])


def _type_rows() -> Iterator[str]:
    from model_types.names import MODEL_TYPES

    for name in sorted(MODEL_TYPES):
        text = (TESTS / "golden" / "model_types" / f"{name}.txt").read_text(encoding="utf-8")
        yield _row([name, text.splitlines()[0], *Summary.of(text).cells])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent), str(TESTS.parent / "passes")]
    PAGE.write_text(page(), encoding="utf-8")
