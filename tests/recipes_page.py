"""docs/recipes.md: its table is written from the recipes themselves. `python tests/recipes_page.py` writes it anew."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
if __name__ == "__main__":
    root = PAGE.parent.parent
    sys.path[:0] = [str(root), str(root / "passes")]

from moeify.api.planning import registry  # noqa: E402 - the path comes first where this is run as a script
from moeify.errors import UsageError  # noqa: E402
from moeify.ir.facts import CalibrationData  # noqa: E402
from moeify.pipeline.pipeline import Pipeline, flatten  # noqa: E402
from moeify.pipeline.recipe import Recipe, presets  # noqa: E402

HEAD = "| recipe | experts | router | choice | then | calibration data |"


def page() -> str:
    """The page with the table as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    rows = "\n".join(row(recipe) for recipe in presets().values())
    table = f"{HEAD}\n| --- | --- | --- | --- | --- | --- |\n{rows}\n"
    return re.sub(re.escape(HEAD) + r"\n(\|.*\n)+", lambda _: table, text)


def row(recipe: Recipe) -> str:
    """One line of the table."""
    pipeline = recipe.build(registry())
    steps: dict[str, Any] = {step.name: step for step in flatten(pipeline.passes)}
    cells = (f"`{recipe.name}`", _experts(steps), *_routing(steps), _then(steps), _data(pipeline, list(steps.values())))
    return "| " + " | ".join(cells) + " |"


def _experts(steps: dict[str, Any]) -> str:
    if (clusters := steps.get("cluster-neurons")) is not None:
        if isinstance(clusters.experts, str):
            return f"of {clusters.experts} by `{clusters.by.kind}`"
        part = clusters.shared or clusters.shared_experts / (clusters.shared_experts + clusters.experts)
        return f"{clusters.experts} by `{clusters.by.kind}`" + (f", beside {part:g} shared" if part else "")
    if (kept := steps.get("keep-neurons")) is not None:
        return f"one: {kept.active:g} of the neurons, by {kept.by}"
    upcycled = steps["upcycle-experts"]
    shards = f" in {upcycled.shards} shards" if upcycled.shards > 1 else ""
    return f"{upcycled.experts // upcycled.shards} `{upcycled.by.kind}`" + shards


def _routing(steps: dict[str, Any]) -> tuple[str, str]:
    if (router := steps.get("insert-router")) is not None:
        return f"`{router.by.kind}`", router.choice
    return ("by chance", "top-k") if "insert-stochastic-experts" in steps else ("none", "always on")


def _then(steps: dict[str, Any]) -> str:
    found = [name for name in ("scale-experts", "compensate", "refit-outputs") if name in steps]
    return "; ".join(f"`{name}`" + (f", {steps[name].kind}" if name == "compensate" else "") for name in found) or "-"


def _data(pipeline: Pipeline, steps: list[Any]) -> str:
    if not any(CalibrationData in step.needs for step in steps):
        return "not used"
    try:
        pipeline.check(with_data=False)
    except UsageError:
        return "needed"
    return "for the report alone"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
