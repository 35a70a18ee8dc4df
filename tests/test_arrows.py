"""A package imports only what stands to its right: the order of DESIGN is checked on the syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "facesyn_cli"
LEVELS = [
    {"cli", "__main__"},
    {"api"},
    {"results"},
    {"pipelines"},
    {"stages"},
    {"bench"},
    {"training", "contexts", "augmentations", "report"},
    {"sampling"},
    {"evaluation"},
    {"models", "diffusion", "data"},
    {"artifacts", "config"},
    {"plugins"},
    {"distributed"},
    {"untrusted"},
    {"errors", "display", "console", "progress", "signals", "launch", "__init__"},
]
BESIDE = {
    ("console", "errors"), ("console", "display"), ("progress", "console"), ("progress", "display"),
    ("signals", "errors"), ("launch", "console"), ("__main__", "cli"),
}
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[tuple[int, str]]:
    """Return (line, dotted name) of everything a file imports from our package, wherever it does."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return [(line, name) for line, name in found if name.split(".")[0] == "facesyn_cli"]


def module_name(path: Path) -> str:
    return ".".join(("facesyn_cli", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def import_cycles() -> set[frozenset[str]]:
    """Return the groups of modules that import each other, directly or over others (strongly connected components)."""
    names = {module_name(path) for path in MODULES} - {"facesyn_cli"}
    edges: dict[str, set[str]] = {}
    for path in MODULES:
        found = {name for _, name in imports(path)}
        edges[module_name(path)] = ((found | {name.rpartition(".")[0] for name in found}) & names) - {module_name(path)}
    reached = {name: _reachable(name, edges) for name in names}
    return {frozenset({name, *(other for other in reached[name] if name in reached[other])})
            for name in names if name in reached[name]}


def _reachable(name: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    queue = [*edges[name]]
    while queue:
        other = queue.pop()
        if other not in seen:
            seen.add(other)
            queue += edges[other]
    return seen


def owner(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_to_the_right(path: Path) -> None:
    source = owner(path)
    for line, name in imports(path):
        parts = name.split(".")
        target = parts[1] if len(parts) > 1 and parts[1] in LEVEL_OF else "__init__"
        if target == source and source != "stages":
            continue
        allowed = LEVEL_OF[source] < LEVEL_OF[target] or (source, target) in BESIDE
        assert allowed, f"{path.name}:{line} imports {name}: {source} may not import {target}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda p: p.stem)
def test_commands_share_a_few_modules_only(path: Path) -> None:
    others = {name.split(".")[2] for _, name in imports(path) if name.startswith("facesyn_cli.cli.")}
    assert path.stem == "main" or others <= {"stage_command", "terminal", "setting_listing", "next_step"}


def test_every_package_has_a_level() -> None:
    found = [p for p in PACKAGE.iterdir() if p.suffix in ("", ".py") and p.name != "__pycache__"]
    names = {p.stem for p in found}
    without_code = {"autoencoders", "configs", "guide", "starter"}
    assert names - without_code <= set(LEVEL_OF), "a new package needs a place in the order"


def test_rule_catches_a_wrong_arrow() -> None:
    assert LEVEL_OF["data"] == LEVEL_OF["models"] and ("models", "data") not in BESIDE
    assert not LEVEL_OF["artifacts"] < LEVEL_OF["stages"]
