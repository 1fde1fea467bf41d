"""The host whose model is an ONNX graph: the same walk as through a torch model, on a graph of two nodes a layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from moeify.errors import UsageError
from moeify.frontend.loaded import LoadedModel
from moeify.frontend.match import Found
from moeify.frontend.onnx.model import OnnxModel
from moeify.ir.feed_forward import FeedForward
from moeify.ir.model_graph import Batch, Loss, OutputGradient
from moeify.ir.moe_spec import MoESpec
from moeify.layers.moe_layer import MoELayer
from moeify.splice.eager_host import EagerHost


class OnnxHost(EagerHost):
    """Everything between two feed-forward networks runs through ONNX Runtime; converted ones are MoE layers of torch."""

    model: OnnxModel

    def __init__(self, loaded: LoadedModel) -> None:
        assert isinstance(loaded.model, OnnxModel)
        super().__init__(loaded, loaded.model.traced)

    def found(self) -> Found:
        assert self.model.found is not None, "a loaded model is cut"
        return self.model.found

    def gradients(self, batches: Iterable[Batch], loss: Loss) -> Iterator[dict[str, OutputGradient]]:
        raise UsageError("an ONNX file has no gradients: choose a recipe without them, or give the PyTorch model")

    def splice(self, site: FeedForward, spec: MoESpec) -> None:
        layer = MoELayer.from_spec(site, spec).eval()
        self.model.install(site.path, layer)
        self.layers[site.path] = layer


def host_of(loaded: LoadedModel) -> EagerHost:
    """The host for a model that has come in."""
    return OnnxHost(loaded) if isinstance(loaded.model, OnnxModel) else EagerHost(loaded)
