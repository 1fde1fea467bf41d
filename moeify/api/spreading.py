"""A conversion by several processes: what can be split, said before anything is loaded, and the session that splits it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from moeify.api.arguments import Data, Factory, Source, dtype_of
from moeify.api.onnx_source import is_onnx
from moeify.api.planning import Ready, registry
from moeify.errors import UsageError
from moeify.export.folder import package_versions
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.layer_workers import LayerWorkers
from moeify.pipeline.pipeline import flatten
from moeify.pipeline.recipe import Recipe

_LEAVE = "leave out --workers and --cluster"


def check_spread(
    workers: int | None, cluster: str | None, source: Source, recipe: Recipe, calibrate: Data | None, *,
    factory: Factory | None, device: str,
) -> None:  # fmt: skip
    """Raises UsageError where the conversion cannot be split among processes, MissingExtraError without Ray, InputError for a
    cluster that does not answer. Nothing is checked where neither workers nor cluster are given."""
    if workers is None and cluster is None:
        return
    if workers is not None and cluster is not None:
        raise UsageError(
            f"--workers {workers} are processes on this machine, --cluster {cluster} has its own: give one of them"
        )
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}: choose 1 or more")
    _check_model(source, factory, device)
    _check_recipe(recipe, with_data=calibrate is not None)
    from moeify.workers.session import check_ray, check_reachable

    check_ray()
    if cluster is not None:
        check_reachable(cluster)


def _check_model(source: Source, factory: Factory | None, device: str) -> None:
    if isinstance(source, nn.Module):
        raise UsageError(f"workers read the model themselves, and a module in memory is in no file: give its path, or {_LEAVE}")
    if is_onnx(source):
        raise UsageError(f"an ONNX file is converted by one process: {_LEAVE}, or give the PyTorch model")
    if factory is not None and not isinstance(factory, str):
        raise UsageError("workers build the module themselves: give the factory by its name, pkg.mod:callable")
    if device != "cpu":
        raise UsageError(f"workers compute on the CPU: leave out --device {device}, or {_LEAVE}")


def _check_recipe(recipe: Recipe, *, with_data: bool) -> None:
    steps = recipe.build(registry()).passes
    loops = [step for step in steps if isinstance(step, EachLayer)]
    if not loops:
        raise UsageError(f"nothing of recipe {recipe.name!r} can be split: it has no each-layer; {_LEAVE}")
    if with_data and any(step.prefix == "converted" for step in loops):
        raise UsageError(
            f"layers of recipe {recipe.name!r} wait for each other, as each is calibrated on what the converted ones before it "
            f"give: let them go by the dense model with --set each-layer.prefix=dense, or {_LEAVE}"
        )
    for step in flatten(loops):
        if getattr(step, "checkpoints", ()):
            raise UsageError(f"{step.name} takes weights of other checkpoints, which one process reads: {_LEAVE}")


@contextmanager
def spread(
    workers: int | None, cluster: str | None, source: Source, ready: Ready, *, factory: Factory | None, dtype: str,
    allow_pickle: bool,
) -> Iterator[LayerWorkers | None]:  # fmt: skip
    """Workers for the layers of the model, which its host asks too; None where neither workers nor cluster are given."""
    if workers is None and cluster is None:
        yield None
        return
    from moeify.workers.model_source import ModelSource, graph_digest
    from moeify.workers.ray_workers import RayWorkers
    from moeify.workers.session import ray_session

    assert not isinstance(source, nn.Module)
    assert factory is None or isinstance(factory, str)
    host = ready.host
    described = ModelSource(
        Path(source).expanduser().absolute(), factory, host.example, dtype_of(dtype), allow_pickle, host.loaded.source,
        graph_digest(host.traced), package_versions(),
    )  # fmt: skip
    with ray_session(workers, cluster):
        host.elsewhere = found = RayWorkers(described)
        try:
            yield found
        finally:
            host.elsewhere = None
