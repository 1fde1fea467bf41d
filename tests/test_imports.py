"""Every module can be the first that is imported, and `import moeify` costs next to nothing."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Loads what is not ours once, then forks a process for every list of modules, which imports them before any other of ours.
_FORK = """
import gc, importlib, json, multiprocessing, os, sys, traceback
import numpy, rich.console, safetensors.torch, torch, typer
ours = [name for name in sys.modules if name.partition(".")[0] in ("moeify", "moeify_passes")]
assert not ours, ours
gc.disable()  # a collection walks all of torch: half of every import's time

def fault(names):
    try:
        for name in names:
            importlib.import_module(name)
    except BaseException:
        return traceback.format_exc()[-2000:]

lists = json.loads(sys.argv[1])
with multiprocessing.get_context("fork").Pool(os.cpu_count(), maxtasksperchild=1) as pool:
    faults = pool.map_async(fault, lists, chunksize=1).get(timeout=200)
print(json.dumps({names[0]: text for names, text in zip(lists, faults) if text}))
"""


def modules() -> list[str]:
    """All modules of ours but __main__, which runs the command."""
    found = []
    for base, package in ((ROOT, "moeify"), (ROOT / "passes", "moeify_passes")):
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return [name for name in found if not name.endswith("__main__")]


def python(code: str, *arguments: str) -> str:
    """The standard output of a new Python process."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'passes'}"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_module_imports_first_in_a_fresh_process() -> None:
    names = modules()
    assert {"moeify", "moeify.api", "moeify.cli.run", "moeify_passes"} <= set(names)
    # moeify_passes itself imports every pass, so that it comes first whichever of its modules is asked for.
    passes = [name for name in names if name.startswith("moeify_passes")]
    alone = [[name] for name in names if name not in passes]
    assert json.loads(python(_FORK, json.dumps([*alone, passes]))) == {}


def test_importing_moeify_is_fast_and_loads_neither_torch_nor_the_passes() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import moeify; print(time.perf_counter() - start);"
        "print(sorted({n.partition('.')[0] for n in sys.modules} & {'torch', 'numpy', 'typer', 'rich', 'moeify_passes'}))"
    )
    runs = [python(code).splitlines() for _ in range(5)]
    assert {loaded for _, loaded in runs} == {"[]"}
    assert statistics.median(float(seconds) for seconds, _ in runs) < 0.05


@pytest.mark.slow
def test_public_names_are_no_modules_whatever_was_imported_before() -> None:
    """A subpackage, once imported, takes the place of a function of the same name."""
    code = (
        "import importlib, json, sys, types, moeify\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "print([name for name in moeify.__all__ if isinstance(getattr(moeify, name), types.ModuleType)])"
    )
    assert python(code, json.dumps(modules())) == "[]\n"
