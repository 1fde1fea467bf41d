"""Rated sentences and parallel text that ship inside packages: what the training examples learn from."""

from __future__ import annotations

import html
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from package_files import Package, cached, unpacked

VADER = Package(
    "vaderSentiment",
    "0.5",
    "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
    "source",
)
QURAN = Package(
    "quran-json",
    "3.1.2",
    "d1454352cae9c7506d28d160486b2eb62472d45e36e01cee192d8ade889a6d49",
    "package/dist/quran_",
    "npm",
)

#: What the sentences are about -> the name of their file.
SENTENCES = {"films": "movieReviewSnippets", "products": "amazonReviewSnippets"}


@dataclass(frozen=True)
class Rated:
    """A sentence and how positive 20 readers found it: their mean, from -4 to 4."""

    text: str
    rating: float


@dataclass(frozen=True)
class Pair:
    """A sentence and its translation."""

    source: str
    target: str


def rated_sentences(kind: Literal["films", "products"]) -> list[Rated]:
    """10,605 sentences of film reviews or 3,708 of product reviews (Hutto and Gilbert 2014; MIT)."""

    def write(folder: Path) -> None:
        with tarfile.open(unpacked(VADER) / VADER.inside) as archive:
            for name in SENTENCES.values():
                member = archive.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
                assert member is not None
                (folder / f"{name}.txt").write_bytes(member.read())

    path = cached("rated-sentences", write) / f"{SENTENCES[kind]}.txt"
    lines = io.StringIO(path.read_text(encoding="utf-8"))
    rows = (line.rstrip("\r\n").split("\t") for line in lines)
    return [Rated(html.unescape(html.unescape(text)).strip(), float(rating)) for _, rating, text in rows]


def verses(source: str = "en", target: str = "fr") -> list[Pair]:
    """The 6,236 verses of the Quran in two of its translations: bn, en, es, fr, id, ru, sv, tr, ur or zh (CC-BY-4.0)."""

    def texts(language: str) -> list[str]:
        path = unpacked(QURAN) / f"{QURAN.inside}{language}.json"
        chapters = json.loads(path.read_text(encoding="utf-8"))
        return [verse["translation"].strip() for chapter in chapters for verse in chapter["verses"]]

    return [Pair(*texts) for texts in zip(texts(source), texts(target), strict=True)]
