"""moeify turns a trained dense model into a Mixture-of-Experts model.

    import moeify
    moeify.convert("my-model/", output="my-model-moe/", recipe="emoe", top_k=4)
    model = moeify.load("my-model-moe/")

Everything public is imported on first use (PEP 562): `import moeify` loads neither torch nor the passes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "auxiliary_loss": "moeify.training.settings",
    "convert": "moeify.api",
    "evaluate": "moeify.api",
    "inspect": "moeify.api",
    "load": "moeify.api",
    "open_model": "moeify.api",
    "save": "moeify.api",
    "EachLayer": "moeify.pipeline.each_layer",
    "MoELayer": "moeify.layers.moe_layer",
    "MoeifyError": "moeify.errors",
    "Pipeline": "moeify.pipeline.pipeline",
    "moe_layers": "moeify.layers.budget",
    "register": "moeify.runtime.native",
    "set_inference": "moeify.layers.inference",
    "set_threshold": "moeify.layers.budget",
    "set_top_k": "moeify.layers.budget",
    "set_training": "moeify.training.settings",
}

__all__ = [
    "EachLayer",
    "MoELayer",
    "MoeifyError",
    "Pipeline",
    "__version__",
    "auxiliary_loss",
    "convert",
    "evaluate",
    "inspect",
    "load",
    "moe_layers",
    "open_model",
    "register",
    "save",
    "set_inference",
    "set_threshold",
    "set_top_k",
    "set_training",
]

if TYPE_CHECKING:
    from moeify.api import convert, evaluate, inspect, load, open_model, save
    from moeify.errors import MoeifyError
    from moeify.layers.budget import moe_layers, set_threshold, set_top_k
    from moeify.layers.inference import set_inference
    from moeify.layers.moe_layer import MoELayer
    from moeify.pipeline.each_layer import EachLayer
    from moeify.pipeline.pipeline import Pipeline
    from moeify.runtime.native import register
    from moeify.training.settings import auxiliary_loss, set_training


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moeify' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
