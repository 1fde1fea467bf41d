"""An MoE layer in moeify.json: written, and read back without trusting a field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from moeify.errors import InputError
from moeify.export.manifest_fields import Fields
from moeify.ir.feed_forward import ROLES, Rewrite, Way
from moeify.ir.moe_config import MoEConfig
from moeify.ir.weight_place import WeightPlace


@dataclass(frozen=True)
class LayerEntry:
    """One MoE layer: how it is put into the dense skeleton, its shape, and where the weights of its dense FFN stand there, by
    role (None in folders that say nothing of it)."""

    rewrite: Rewrite
    config: MoEConfig
    places: Mapping[str, WeightPlace] | None = None

    def to_json(self, path: str) -> dict[str, Any]:
        places = {} if self.places is None else {"dense": {role: asdict(place) for role, place in self.places.items()}}
        return {"path": path, "rewrite": self.rewrite.to_json(), "config": self.config.to_json(), **places}


def read_layer(fields: Fields) -> tuple[str, LayerEntry]:
    """(path, layer). Raises InputError that names the first field which is missing, unknown or of the wrong type."""
    fields.only("path", "rewrite", "config", optional=("dense",))
    rewrite = fields.table("rewrite")
    rewrite.only("way", "modules", "hidden_dropout", "output_dropout", optional=("channels",))
    entry = LayerEntry(
        Rewrite(
            way=rewrite.choice("way", get_args(Way)),
            modules=rewrite.texts("modules"),
            hidden_dropout=rewrite.number("hidden_dropout"),
            output_dropout=rewrite.number("output_dropout"),
            channels="channels" in rewrite.data and rewrite.boolean("channels"),
        ),
        _config(fields.table("config")),
        _places(fields.table("dense")) if "dense" in fields.data else None,
    )
    return fields.text("path"), entry


def _places(fields: Fields) -> dict[str, WeightPlace]:
    fields.only("up", "down", optional=ROLES)
    return {role: _place(fields.table(role), 1 if role.endswith("bias") else 2) for role in fields.data}


def _place(fields: Fields, dims: int) -> WeightPlace:
    fields.only("parameter", "shape", "rows", "transposed")
    rows = None if fields.is_null("rows") else fields.integers("rows")
    for name, numbers, count in (("shape", fields.integers("shape"), dims), ("rows", rows, 2)):
        if numbers is not None and len(numbers) != count:
            raise InputError(f"{fields.where}: field {name} holds {len(numbers)} numbers, not {count}; convert the model again")
    return WeightPlace(
        parameter=fields.text("parameter"),
        shape=fields.integers("shape"),
        rows=None if rows is None else (rows[0], rows[1]),
        transposed=fields.boolean("transposed"),
    )


def _config(fields: Fields) -> MoEConfig:
    """MoEConfig checks values; types are checked here."""
    for name in ("hidden", "output", "rank"):
        fields.integer(name)
    for name in ("gated", "normalize", "up_bias", "gate_bias", "output_bias", "selection_bias", "idle"):
        fields.boolean(name)
    fields.integers("offsets")
    fields.number("hidden_dropout")
    fields.number("output_dropout")
    for name in ("top_k", "neurons", "shards"):
        if fields.data.get(name) is not None:
            fields.integer(name)
    if fields.data.get("composed") is not None:
        composed = fields.table("composed")
        composed.only("kind", "rank", "alpha")
        composed.text("kind"), composed.integer("rank"), composed.number("alpha")
    for name in ("detach_sum", "smear"):  # older folders have neither
        if name in fields.data:
            fields.boolean(name)
    if not fields.is_null("threshold"):
        fields.number("threshold")
    try:
        return MoEConfig.from_json(fields.data)
    except InputError as error:
        raise InputError(f"{fields.where}: {error}") from error
