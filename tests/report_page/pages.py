"""Contents of a page, by hand: every section filled, and texts that are out to break it."""

from __future__ import annotations

import math
from dataclasses import replace
from html.parser import HTMLParser

import torch

from moeify.measure.co_activation import co_activation
from moeify.measure.load import LayerLoad
from moeify.measure.routing_facts import LayerTogether, RoutingFacts
from moeify.report_page.folder_facts import FolderFacts, LayerFacts
from moeify.report_page.measured_files import Speed, SpeedRow, SweepPoint
from moeify.report_page.page import Contents

#: What a name must not be able to do.
HOSTILE = "<script>alert(1)</script>\"'&<img src=http://x.test/a.png onerror=alert(2)>"

PATHS = tuple(f"model.language_model.layers.{index}.feed_forward" for index in range(12))


def layer(path: str, index: int = 0, experts: int = 8) -> LayerFacts:
    errors = {
        "converted": 0.04 / (index + 1),
        "static-mask": 0.05 / (index + 1),
        "random-partition": 0.3,
        "oracle-routing": 0.01,
    }
    return LayerFacts(
        path,
        "gated",
        "silu",
        64,
        192,
        (192 // experts,) * experts,
        0,
        3,
        None,
        0.4,
        3 * 64 * 192,
        3 * 64 * 192 + 512,
        errors,
        True,
    )


def load(path: str, index: int = 0, experts: int = 8) -> LayerLoad:
    loads = tuple(2 * 3 * (expert + index % 2) / (experts * (experts + 1)) for expert in range(experts))
    share = [value / sum(loads) for value in loads]
    entropy = -sum(value * math.log(value) for value in share if value) / math.log(experts)
    dead = tuple(expert for expert, value in enumerate(loads) if not value)
    return LayerLoad(path, 2000, experts, loads, sum(loads), 3, 3, 0.4, entropy, dead, 3 * 64 * 192)


def together(path: str) -> LayerTogether:
    generator = torch.Generator().manual_seed(len(path))
    common = torch.randn(200, 8, generator=generator).repeat_interleave(24, 1)
    h = common + torch.randn(200, 192, generator=generator)
    shuffled = h[:, torch.randperm(192, generator=generator)]
    pairs = tuple(tuple(0.4 if a == b else 0.1 for b in range(8)) for a in range(8))
    return LayerTogether(path, 200, co_activation(h, (24,) * 8), co_activation(shuffled, (24,) * 8), pairs)


def full(name: str = "my-model-with-a-long-name-moe", word: str = "a word") -> Contents:
    """Every section has something to show; `word` stands wherever a text of model or data can."""
    layers = tuple(layer(path, index) for index, path in enumerate(PATHS))
    facts = FolderFacts(
        name=name, model="LlamaForCausalLM", source=word, recipe=word, description=word, recipe_text=f'name = "{word}"\n' * 3,
        versions={"torch": word}, budget=0.5, verdict=None, parameters=123_456_789, layers=layers,
        data={"name": word, "tokens": 8192, "digest": word}, notes=(word,), refusals=((word, word),),
    )  # fmt: skip
    routing = RoutingFacts(
        tuple(load(path, index) for index, path in enumerate(PATHS)), tuple(together(path) for path in PATHS[::4])
    )
    sweep = (
        SweepPoint(word, 0.75, 0.75, 1.4, True, False, 28.0), SweepPoint(word, 0.5, 0.5, 2.04, True, False, 41.0),
        SweepPoint("static", 0.5, 0.6, 3.1, True, True, 60.0), SweepPoint("emoe", 0.25, None, None, False, False, error=word),
    )  # fmt: skip
    rows = tuple(
        SpeedRow(word, f"{tokens} tokens", 1, (2.0, 2.1, 2.4), (2.1 / s - 0.1, 2.1 / s, 2.1 / s + 0.2), s, 1.9)
        for tokens, s in ((1, 0.8), (128, 1.6))
    )
    return Contents(facts, routing, {"name": word, "tokens": 2000}, sweep, Speed(word, "fp32", word, rows))


def bare(name: str = "my-moe") -> Contents:
    """A folder that nothing was measured of."""
    found = full(name)
    layers = tuple(replace(each, errors={}, chooses=False) for each in found.folder.layers)
    return Contents(replace(found.folder, layers=layers, data={}, refusals=(), notes=(), budget=None))


class Reader(HTMLParser):
    """What an HTML page holds: tags with their attributes, text that is shown, and whether tags close in order."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.css = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.css += data
        else:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]
