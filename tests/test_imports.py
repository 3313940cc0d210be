"""Who may import whom; and that the light parts stay light."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(importlib.util.find_spec("evomerge").submodule_search_locations[0])  # type: ignore

# from low to high: a module may import from layers below its own, and from its own part
LAYERS = [
    ["errors"],
    ["documents", "content", "plugins"],
    ["methods", "zoo.paths"],
    ["checkpoints"],
    ["recipe"],
    ["instantiate", "mergekit", "grouping"],
    ["slice_forms"],
    ["slices", "lineage", "bank", "merged_adapter"],
    ["budget"],
    ["scoring", "space", "front", "backends.config"],
    ["config"],
    ["backends", "search"],
    ["ledger", "calibrate"],
    ["engine"],
    ["report", "export", "extras", "compare", "learning", "hub"],
    ["directions", "plan", "draft", "estimate", "tracking"],
    ["zoo"],
    ["cli"],
    ["api"],
    ["__main__"],
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

# what each outside library may be imported by
ONLY = {
    "ray": {"engine.pools.ray.cluster", "engine.pools.ray.worker"},
    "nevergrad": {"search.nevergrad"},
    "urllib3": {"backends.server.http"},
    "optuna": {"search.optuna", "tracking.dashboard"},
    "matplotlib": {"compare.chart", "report.figures"},
    "numba": {"bank.bits", "bank.counting", "bank.kernels"},
    "llvmlite": {"bank.bits"},
    "triton": {"bank.triton_kernels"},
    "vllm": {
        "backends.vllm.adapters",
        "backends.vllm.asking",
        "backends.vllm.engine",
        "backends.vllm.extension",
        "backends.vllm.punica",
    },
    "lm_eval": {"scoring.harness.kind", "scoring.harness.tasks"},
    "evaluate": {"scoring.harness.tasks"},
    "datasets": {"scoring.harness.tasks"},
    "pickle": set(),
    "cloudpickle": set(),
    "dill": set(),
    "joblib": set(),
    "shelve": set(),
    "marshal": set(),
}


def name_of(path: Path) -> str:
    """``checkpoints.open`` for its file, ``checkpoints`` for the package's own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> Iterator[str]:
    """Everything a module imports, wherever in it, also what only a type checker sees."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}".removeprefix("evomerge.")
                yield f"evomerge.{inner}" if inner in MODULES else node.module


def part_of(module: str) -> str:
    return module if module in LEVEL else module.partition(".")[0]


def own_imports(module: str) -> list[str]:
    found = {i.partition(".")[2] for i in imports(MODULES[module]) if i.startswith("evomerge.")}
    return sorted(found)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {""}))
def test_direction(module: str) -> None:
    here = part_of(module)
    assert here in LEVEL, f"give evomerge.{here} a place in LAYERS"
    for imported in own_imports(module):
        there = part_of(imported)
        assert there == here or LEVEL[there] < LEVEL[here], f"{module} imports {imported}"


def test_the_package_itself_imports_nothing_of_weight() -> None:
    assert set(imports(MODULES[""])) <= {"__future__", "importlib", "typing"}


def test_the_zoo_stands_alone() -> None:
    for module in MODULES:
        if module.partition(".")[0] == "zoo":
            allowed = [i for i in own_imports(module) if i.partition(".")[0] in ("zoo", "errors")]
            assert own_imports(module) == allowed, module


def test_nobody_below_the_command_line_imports_the_zoo_but_its_paths() -> None:
    for module in MODULES:
        if part_of(module) not in ("zoo", "zoo.paths", "cli"):
            zoo = [i for i in own_imports(module) if i.partition(".")[0] == "zoo"]
            assert set(zoo) <= {"zoo.paths"}, module


@pytest.mark.parametrize("library", ONLY)
def test_libraries_that_have_one_home(library: str) -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(i.partition(".")[0] == library for i in imports(path))
    }
    assert users <= ONLY[library]


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_unpickled(module: str) -> None:
    """Neither ``torch.load`` nor an argument that lets a library load pickles or run code."""
    for node in nodes(MODULES[module]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("np", "load")}
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec", "__import__"}


HEAVY = (
    "torch",
    "transformers",
    "ray",
    "optuna",
    "nevergrad",
    "scipy",
    "moocore",
    "lm_eval",
    "numba",
)


@pytest.mark.parametrize(
    "module",
    [
        "evomerge",
        "evomerge.cli.main",
        "evomerge.config",
        "evomerge.space",
        "evomerge.methods",
        "evomerge.checkpoints.layout",
        "evomerge.front",
        "evomerge.ledger.store",
    ],
)
def test_the_light_parts_are_light(module: str) -> None:
    code = f"import sys, {module}; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.split() == []
