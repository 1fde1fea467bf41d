"""What stands in a model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from moeify.api.arguments import Example, Factory, Source
from moeify.api.models import open_outline
from moeify.pipeline.inspection import Inspection, layer_rows, site_rows, sizes_text


def inspect(
    source: Source,
    *,
    factory: Factory | None = None,
    example: Example | None = None,
    allow_pickle: bool = False,
) -> Inspection:
    """The feed-forward networks of a dense model, or the MoE layers of a converted folder or an ONNX file.

    allow_pickle: as `open_model`. Raises InputError for what cannot be read.
    """
    from moeify.frontend.sniff import sniff
    from moeify.splice.eager_host import EagerHost

    kind = "module" if isinstance(source, nn.Module) else sniff(Path(source))
    if kind == "onnx" and (found := _inspect_onnx(Path(str(source)))).rows:
        return found
    if kind == "converted":
        from moeify.export.manifest import read_manifest

        entries = read_manifest(Path(str(source))).layers
        return Inspection("converted", layer_rows((path, e.config, e.rewrite.way) for path, e in entries.items()))
    graph = open_outline(source, factory=factory, example=example, allow_pickle=allow_pickle)
    host = graph.host
    assert isinstance(host, EagerHost)
    sites, refusals = host.find()
    return Inspection("dense", site_rows(sites), refusals, host.loaded.notes)


def _inspect_onnx(path: Path) -> Inspection:
    from moeify.export.onnx.inspecting import onnx_layers

    rows = tuple(
        {
            "path": layer.name,
            "kind": "gated" if layer.shape.gated else "two-matrix",
            "activation": layer.shape.activation,
            "hidden": layer.hidden,
            "experts": len(layer.sizes),
            "sizes": sizes_text(layer.sizes),
            "shared": layer.offsets[0],
            "gate": layer.shape.gate_rule,
            "top_k": layer.k,
        }
        for layer in onnx_layers(path)
    )
    return Inspection("onnx", rows)
