"""Layers of a shape as something to measure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from moeify.speed.layer_draws import EvenInputs, draw_weights, layers_beyond
from moeify.speed.layer_shape import LayerShape
from moeify.speed.layer_stack import converted, dense_gemm, dense_matmul, save_stack
from moeify.speed.machine import last_level_cache
from moeify.speed.measuring import Form, Subject
from moeify.speed.settings import PRECISIONS, Settings
from moeify.speed.work import Work, dense_work, layer_work
from moeify.speed.workload import Place

if TYPE_CHECKING:
    from moeify.speed.layer_stack import Build

#: ONNX Runtime is not always faster with the same one.
DENSE: Mapping[str, Build] = {"dense MatMul": dense_matmul, "dense Gemm": dense_gemm}


def stack_subject(shape: LayerShape, folder: Path, settings: Settings, others: Mapping[str, Build] | None = None) -> Subject:
    """Writes the stacks into the folder. others: further converted forms, which stock ONNX Runtime runs."""
    seed, precision = settings.seed, settings.precision
    rng = np.random.default_rng(seed)
    floats = 4 / PRECISIONS[precision]  # so many such weights take the place of one in float32
    layers = [draw_weights(shape, rng) for _ in range(layers_beyond(round(floats * last_level_cache()), shape))]
    builds = {**DENSE, "converted": converted, **(others or {})}
    folder.mkdir()
    forms = {}
    for number, (name, build) in enumerate(builds.items()):
        path = save_stack(folder / f"{number}.onnx", build, layers, precision)
        forms[name] = Form(path, dense=name in DENSE, native=None if name == "converted" else False)
    inputs = EvenInputs(shape)
    works = {Place(count): _work(shape, inputs, count, seed) for count in settings.tokens}

    def work(place: Place, form: str) -> Work:
        one = works[place][form in DENSE]
        return Work(one.weights * len(layers), one.flops * len(layers))

    return Subject(str(shape), forms, inputs, work, tuple(works), len(layers))


def _work(shape: LayerShape, inputs: EvenInputs, tokens: int, seed: int) -> tuple[Work, Work]:
    """Of one layer: converted, dense."""
    chosen = torch.zeros(tokens, shape.experts, dtype=torch.bool)
    for row, experts in zip(chosen, inputs.choices(tokens, np.random.default_rng((seed, tokens)))):
        row[experts] = True
    return layer_work(shape.config, chosen), dense_work(shape.config, tokens)
