"""The tower of the house, read off the imports: nobody imports upward, nothing goes in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: From the top down. What stands in one line may import its neighbours, as long as no circle comes of it.
TOWER = (
    ("moeify.cli", "moeify.__main__"),
    ("moeify.api",),
    ("moeify_passes",),
    (
        "moeify.frontend", "moeify.pipeline", "moeify.splice", "moeify.export", "moeify.runtime", "moeify.measure",
        "moeify.speed", "moeify.training", "moeify.report_page", "moeify.workers",
    ),
    ("moeify.data", "moeify.layers"),
    ("moeify.ir",),
    ("moeify.errors", "moeify"),
)  # fmt: skip

#: Packages of extras: imported inside functions, so that everything else works without them.
EXTRAS = (
    "transformers",
    "peft",
    "tokenizers",
    "accelerate",
    "gguf",
    "onnx",
    "onnxruntime",
    "onnxruntime_genai",
    "onnxscript",
    "onnx_ir",
    "scipy",
    "pymetis",
    "matplotlib",
    "ray",
)

#: The host's world, which passes know nothing of.
HOSTS = ("torch.nn", "torch.fx", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "onnxruntime_genai")


def sources() -> dict[str, Path]:
    """Module name -> file, for all of moeify and moeify_passes."""
    found = {}
    for base, package in ((ROOT, "moeify"), (ROOT / "passes", "moeify_passes")):
        for path in (base / package).rglob("*.py"):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = sources()
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}


def imported(tree: ast.AST, *, at_import_time: bool = False) -> Iterator[str]:
    """Dotted names that a module imports (`from a import b` gives a.b); at_import_time leaves functions and
    `if TYPE_CHECKING` out."""
    for node in ast.iter_child_nodes(tree):
        if at_import_time and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _for_types(node)):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported(node, at_import_time=at_import_time)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def ours(tree: ast.AST, *, at_import_time: bool = False) -> set[str]:
    """The modules of ours that a module imports; a package's own __init__ counts where nothing more exact is named."""
    found = set()
    for name in imported(tree, at_import_time=at_import_time):
        for candidate in (name, name.rpartition(".")[0]):
            if candidate in MODULES:
                found.add(candidate)
                break
    return found


def storey(module: str) -> int:
    """The height of a module's room, 0 at the bottom."""
    rooms = {room: height for height, line in enumerate(reversed(TOWER)) for room in line}
    name = module
    while name not in rooms:
        name = name.rpartition(".")[0]
    assert name != "moeify" or module == "moeify", f"{module} stands in no room of the tower"
    return rooms[name]


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def test_nobody_imports_upward() -> None:
    upward = {
        module: names
        for module, tree in TREES.items()
        if module != "moeify" and (names := {name for name in ours(tree) if storey(name) > storey(module)})
    }
    assert not upward


def test_the_package_itself_loads_nothing_of_ours() -> None:
    tree = TREES["moeify"]
    assert not ours(tree, at_import_time=True)
    assert not any(ours(node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_only_the_api_imports_the_passes() -> None:
    outside = (name for name in MODULES if not within(name, ("moeify_passes",)))
    assert [name for name in outside if any(within(i, ("moeify_passes",)) for i in ours(TREES[name]))] == [
        "moeify.api.planning"
    ]


def test_rooms_of_one_storey_form_no_circle() -> None:
    rooms: dict[str, set[str]] = {room: set() for line in TOWER for room in line}
    for module, tree in TREES.items():
        room = room_of(module)
        rooms[room] |= {other for name in ours(tree, at_import_time=True) if (other := room_of(name)) != room}
    del rooms["moeify"]
    assert tuple(TopologicalSorter(rooms).static_order())


def room_of(module: str) -> str:
    return next(
        (room for line in TOWER for room in line if room != "moeify" and within(module, (room,))), "moeify"
    )  # fmt: skip


def test_modules_form_no_circle() -> None:
    graph = {name: ours(tree, at_import_time=True) for name, tree in TREES.items()}
    assert tuple(TopologicalSorter(graph).static_order())


def test_extras_are_imported_where_they_are_used() -> None:
    eager = {
        module: names
        for module, tree in TREES.items()
        if (names := {name for name in imported(tree, at_import_time=True) if within(name, EXTRAS)})
    }
    assert not eager


def test_passes_know_no_host() -> None:
    hosts = {
        module: names
        for module, tree in TREES.items()
        if within(module, ("moeify_passes",))
        and (names := {n for n in imported(tree) if within(n, HOSTS) and not within(n, ("torch.nn.functional",))})
    }
    assert not hosts


def test_the_rules_would_be_noticed_if_broken() -> None:
    """The reader of imports sees what it is to see."""
    tree = ast.parse(
        "import torch.fx\n"
        "from moeify.ir import facts\n"
        "from moeify.errors import UsageError\n"
        "if TYPE_CHECKING:\n    import onnx\n"
        "def f():\n    from moeify_passes import PASSES\n"
    )
    assert set(imported(tree, at_import_time=True)) == {"torch.fx", "moeify.ir.facts", "moeify.errors.UsageError"}
    assert ours(tree) == {"moeify.ir.facts", "moeify.errors", "moeify_passes"}
    lines = [[storey(room) for room in line] for line in TOWER]
    assert all(len(set(line)) == 1 for line in lines)
    assert all(upper[0] > lower[0] for upper, lower in pairwise(lines))
