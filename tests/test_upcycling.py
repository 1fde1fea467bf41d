"""docs/upcycling.md: every row of its table is a conversion whose outputs are compared with the dense model's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from converted import distance, main_output, opened
from moeify.api import registry
from moeify.frontend.other_checkpoints import OtherCheckpoints
from moeify.pipeline.configure import configure
from moeify.pipeline.recipe import parse_setting
from zoo import ZOO

PAGE = Path(__file__).parent.parent / "docs" / "upcycling.md"


@dataclass(frozen=True)
class Row:
    """One row of the table. distance 0: the function is preserved."""

    construction: str
    recipe: str
    settings: str
    distance: float


def rows() -> list[Row]:
    table = PAGE.read_text("utf-8").partition("| construction | recipe | settings | distance |\n| --- | --- | --- | --- |\n")[2]
    lines = table.partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [Row(name, recipe, settings, float(figure)) for name, recipe, settings, figure in cells]


ROWS = rows()


def model_distance(model: str, row: Row) -> float:
    """The distance of the converted model from the dense one, on the model's example."""
    zoo, graph = opened(model)
    expected = main_output(zoo.run())
    settings = [parse_setting(text) for text in row.settings.split(";") if text]
    recipe = configure(row.recipe, settings=settings)
    recipe.build(registry()).run(graph, checkpoint=OtherCheckpoints(zoo.model).open)
    assert len(graph.spliced) == 2
    return distance(main_output(zoo.run()), expected)


def save_checkpoints(model: nn.Module) -> None:
    """base.pt and, with noise on every weight, tuned.pt."""
    torch.save(model.state_dict(), "base.pt")
    generator = torch.Generator().manual_seed(0)
    noise = {name: 0.1 * torch.randn(value.shape, generator=generator) for name, value in model.state_dict().items()}
    torch.save({name: value + noise[name] for name, value in model.state_dict().items()}, "tuned.pt")


def test_the_table_is_read() -> None:
    assert len(ROWS) > 20
    assert {row.recipe for row in ROWS} >= {
        "upcycle", "granular-upcycle", "drop-upcycle", "thor", "residual-upcycle", "lora-experts"
    }  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.construction)
@pytest.mark.parametrize("model", ["residual-stack", "bare"])
def test_a_row_of_the_table(row: Row, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoints(ZOO[model]().model)
    found = model_distance(model, row)
    if row.distance == 0:
        assert found < 1e-5
    elif model == "residual-stack":
        assert found == pytest.approx(row.distance, rel=0.02)
    else:
        assert found > 1e-4
