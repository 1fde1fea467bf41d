"""The one place where everything meets: load, trace, run a pipeline, splice, save, evaluate, export, benchmark."""

from moeify.api.afterwards import evaluate, export, export_genai, export_hf
from moeify.api.benchmarking import bench, bench_layers
from moeify.api.conversion import Conversion, convert
from moeify.api.dense import Dense, to_dense
from moeify.api.importing import Import, import_hf
from moeify.api.inspecting import inspect
from moeify.api.models import load, open_model, resave, save
from moeify.api.planning import plan, registry
from moeify.api.pruning import PrunedLayer, prune_experts
from moeify.api.reporting import ReportPage, report
from moeify.api.sweeping import Sweep, sweep
from moeify.api.writing import OwnText, write_text
from moeify.pipeline.inspection import Inspection
from moeify.pipeline.plan import Plan

__all__ = [
    "Conversion",
    "Dense",
    "Import",
    "Inspection",
    "OwnText",
    "Plan",
    "PrunedLayer",
    "ReportPage",
    "Sweep",
    "bench",
    "bench_layers",
    "convert",
    "evaluate",
    "export",
    "export_genai",
    "export_hf",
    "import_hf",
    "inspect",
    "load",
    "open_model",
    "plan",
    "prune_experts",
    "registry",
    "report",
    "resave",
    "save",
    "sweep",
    "to_dense",
    "write_text",
]
