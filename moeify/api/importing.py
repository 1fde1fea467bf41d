"""A stock Mixture-of-Experts checkpoint comes in as a converted folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeify.api.arguments import Example, check_output, dtype_of
from moeify.pipeline.context import Progress, no_progress
from moeify.pipeline.recipe import Recipe
from moeify.pipeline.report import LayerReport, Report

if TYPE_CHECKING:
    from moeify.export.hf.report import Agreement
    from moeify.ir.moe_config import MoEConfig

#: Of a folder that nobody knows the recipe of.
_RECIPE = Recipe("imported", ({"name": "find-feed-forward"},), "Read from a stock Mixture-of-Experts checkpoint.")


@dataclass(frozen=True, eq=False)
class Import:
    """output: the folder, as a conversion writes it. remembered: moeify wrote the checkpoint, and nobody changed it since: so
    layers, recipe and dense model are those that it was made of. agreement: with the stock model, on the example inputs."""

    output: Path
    report: Report
    remembered: bool
    agreement: Agreement

    def __str__(self) -> str:
        made = "written by moeify" if self.remembered else "as its class computes it"
        return f"{self.output}: {len(self.report.layers)} MoE layers, {made}\n  {self.agreement}"

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "layers": len(self.report.layers),
            "remembered": self.remembered,
            "agreement": asdict(self.agreement),
        }


def import_hf(
    source: str | Path,
    output: str | Path,
    *,
    example: Example | None = None,
    dtype: str = "fp32",
    force: bool = False,
    progress: Progress = no_progress,
) -> Import:
    """Reads a stock checkpoint (Mixtral, Qwen2-MoE, Qwen3-MoE, GraniteMoe, GraniteMoeShared, GLM4-MoE, dots1), by moeify or
    not, and writes it as a converted folder for `load`, `evaluate`, `export` and all else (docs/stock-checkpoints.md).

    It appears once its layers have chosen the same experts as the stock model, and given the same logits. Raises InputError for
    what cannot be read, ConversionError with the reason for a model that moeify's layers do not compute, OutputError.
    """
    from moeify.export.folder import save_folder
    from moeify.export.hf.importing import import_stock
    from moeify.frontend.load_example import read_example

    kind = dtype_of(dtype)
    folder = Path(source).expanduser()
    check_output(Path(output), folder, force=force)
    progress("reading the stock checkpoint", 0, None)
    found = import_stock(folder, kind, None if example is None else read_example(example, "cpu"))
    notes = (f"read from {found.loaded.source.name}, a stock checkpoint: {found.agreement}", *found.loaded.notes)
    layers = tuple(_layer(path, entry.config) for path, entry in found.entries.items())
    report = Report(layers, (), (), notes, {})
    recipe = _RECIPE.to_toml() if found.made is None or found.made.recipe is None else found.made.recipe
    progress("writing", 0, None)
    target = save_folder(
        found.loaded.model, found.entries, found.loaded, recipe, report.to_json(), Path(output), force=force
    )  # fmt: skip
    return Import(target, report, found.made is not None, found.agreement)


def _layer(path: str, config: MoEConfig) -> LayerReport:
    neurons = config.dense_neurons
    return LayerReport(
        path=path,
        kind="gated" if config.gated else "two-matrix",
        activation=config.activation,
        hidden=config.hidden,
        neurons=neurons,
        sizes=config.sizes,
        shared=config.shared,
        router=None if config.router is None else config.router.kind,
        top_k=config.top_k,
        threshold=config.threshold,
        parameters_before=neurons * (2 * config.hidden + config.output),
        parameters_after=config.parameters,
        active_fraction=config.active_fraction(neurons),
        measured={},
    )
