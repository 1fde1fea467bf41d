"""Real models out of PyPI packages, converted and exported once for all tests of this folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import moeify
import real_models
from moeify.api import Conversion
from moeify.errors import MoeifyError


@dataclass(frozen=True)
class Converted:
    """A dense model on disk and its conversion with all experts on, ONNX file included."""

    dense: Path
    done: Conversion
    folder: Path


def fetched(what: str, module: ModuleType = real_models) -> Path:
    """What that function of the module fetches. Where packages cannot be fetched the test is skipped on a laptop and fails
    in CI."""
    try:
        path: Path = getattr(module, what)()
    except MoeifyError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{what} cannot be fetched: {error}")
    return path


def _converted(what: str, folder: Path, **options: Any) -> Converted:
    dense = fetched(what)
    done = moeify.convert(dense, folder / what, experts=16, top_k=16, export=("torch", "onnx"), **options)
    return Converted(dense, done, folder / what)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return _converted("smollm2", tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return _converted("minilm", tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="session")
def technical_text() -> Path:
    return fetched("technical_text")
