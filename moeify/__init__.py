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
    "bench": "moeify.api",
    "bench_layers": "moeify.api",
    "convert": "moeify.api",
    "evaluate": "moeify.api",
    "export_genai": "moeify.api",
    "export_hf": "moeify.api",
    "import_hf": "moeify.api",
    "inspect": "moeify.api",
    "load": "moeify.api",
    "open_model": "moeify.api",
    "prune_experts": "moeify.api",
    "report": "moeify.api",
    "resave": "moeify.api",
    "save": "moeify.api",
    "sweep": "moeify.api",
    "to_dense": "moeify.api",
    "write_text": "moeify.api",
    "Alignment": "moeify.training.align",
    "EachLayer": "moeify.pipeline.each_layer",
    "MoELayer": "moeify.layers.moe_layer",
    "MoeifyError": "moeify.errors",
    "Pipeline": "moeify.pipeline.pipeline",
    "add_expert": "moeify.layers.membership",
    "moe_layers": "moeify.layers.budget",
    "remove_expert": "moeify.layers.membership",
    "register": "moeify.runtime.native",
    "set_inference": "moeify.layers.inference",
    "set_smear": "moeify.layers.inference",
    "set_threshold": "moeify.layers.budget",
    "set_top_k": "moeify.layers.budget",
    "set_training": "moeify.training.settings",
}

__all__ = [
    "Alignment",
    "EachLayer",
    "MoELayer",
    "MoeifyError",
    "Pipeline",
    "__version__",
    "add_expert",
    "auxiliary_loss",
    "bench",
    "bench_layers",
    "convert",
    "evaluate",
    "export_genai",
    "export_hf",
    "import_hf",
    "inspect",
    "load",
    "moe_layers",
    "open_model",
    "prune_experts",
    "register",
    "remove_expert",
    "report",
    "resave",
    "save",
    "set_inference",
    "set_smear",
    "set_threshold",
    "set_top_k",
    "set_training",
    "sweep",
    "to_dense",
    "write_text",
]

if TYPE_CHECKING:
    from moeify.api import (
        bench,
        bench_layers,
        convert,
        evaluate,
        export_genai,
        export_hf,
        import_hf,
        inspect,
        load,
        open_model,
        prune_experts,
        report,
        resave,
        save,
        sweep,
        to_dense,
        write_text,
    )
    from moeify.errors import MoeifyError
    from moeify.layers.budget import moe_layers, set_threshold, set_top_k
    from moeify.layers.inference import set_inference, set_smear
    from moeify.layers.membership import add_expert, remove_expert
    from moeify.layers.moe_layer import MoELayer
    from moeify.pipeline.each_layer import EachLayer
    from moeify.pipeline.pipeline import Pipeline
    from moeify.runtime.native import register
    from moeify.training.alignment import Alignment
    from moeify.training.settings import auxiliary_loss, set_training


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moeify' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
