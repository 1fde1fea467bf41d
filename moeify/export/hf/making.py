"""What a stock checkpoint remembers of the converted model that it was made of, so that it can be read back as that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moeify.data.importable import one_line
from moeify.errors import InputError
from moeify.export.atomic import EXPORT
from moeify.export.manifest_fields import Fields
from moeify.export.manifest_layers import LayerEntry, read_layer
from moeify.frontend.loaded import file_digest
from moeify.ir.feed_forward import Rewrite
from moeify.ir.moe_config import MoEConfig
from moeify.ir.weight_place import WeightPlace


@dataclass(frozen=True)
class Making:
    """model_type: of the dense model. neurons: of its FFNs. layers: by path in it, as in moeify.json. scales: by path, what a
    router was multiplied with. recipe: the text that made it, or None. digests: of the files of weights -> sha256."""

    model_type: str
    neurons: int
    layers: Mapping[str, LayerEntry]
    scales: Mapping[str, float]
    recipe: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "model_type": self.model_type,
            "neurons": self.neurons,
            "layers": [entry.to_json(path) | {"router_scale": self.scales[path]} for path, entry in self.layers.items()],
            "recipe": self.recipe,
            "digests": dict(self.digests),
        }


def held(config: MoEConfig) -> MoEConfig:
    """The shape that is left of a layer in a stock checkpoint: plain rows, and none of what no class holds."""
    return replace(config, composed=None, idle=False, rank=0, output_bias=False, threshold=None)


def entry_of(path: str, config: MoEConfig) -> LayerEntry:
    """A layer in the place of a dense FFN of these families. Where nobody knows the FFN there is no way back."""
    hidden, neurons = config.hidden, config.neurons
    names = {} if neurons is None else {"gate": False, "up": False, "down": True}
    places = {
        role: WeightPlace(f"{path}.{role}_proj.weight", (config.dense_neurons, hidden), None, turned)
        for role, turned in names.items()
    }
    return LayerEntry(Rewrite("submodule", {"ffn": path}), config, places or None)


def weight_digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(folder.glob("*.safetensors"))}


def read_making(folder: Path) -> Making | None:
    """None where moeify did not write the folder, or its weights were changed since. Raises InputError for a damaged file."""
    path = folder / EXPORT
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is damaged ({one_line(error)}); export the model again, or remove it") from error
    fields = Fields.of(data, str(path))
    if "made_of" not in fields.data:  # an older version wrote it
        return None
    made = fields.table("made_of")
    digests = made.texts("digests")
    if digests != weight_digests(folder):
        return None
    layers, scales = {}, {}
    for table in made.tables("layers"):
        place, entry = read_layer(
            Fields({name: value for name, value in table.data.items() if name != "router_scale"}, table.where)
        )
        layers[place], scales[place] = entry, table.number("router_scale")
    recipe = None if made.is_null("recipe") else made.text("recipe")
    return Making(made.text("model_type"), made.integer("neurons"), layers, scales, recipe, digests)
