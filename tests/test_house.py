"""The house: rooms in order, nothing imports upwards, nothing goes round in circles."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import ssmdiag

ROOT = Path(ssmdiag.__file__).parent
ORDER = (
    "version", "printable", "errors", "cores", "guard", "recurrence", "checkpoint", "output", "families", "kernel",
    "decay", "capacity", "stability", "reparam", "assessment", "probing", "rules", "diagnosis", "compare", "watching",
    "retrain", "reports", "check", "cli", "__main__", "__init__",
)  # fmt: skip
"""Rooms and modules at the top, from the ground up: each uses those before it alone."""
MOST_AT_THE_TOP = 8


def modules() -> dict[str, Path]:
    """Return every module's dotted name within the package → its file; a package is named for itself."""
    return {".".join(_parts(path)) or "__init__": path for path in ROOT.rglob("*.py")}


def _parts(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports of a tree, those inside functions too, those for type checkers alone left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue  # no expression holds an import
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        yield from statements(child)


def imports(source: str, known: Mapping[str, object]) -> set[str]:
    """Return the modules of the package that a source imports."""
    named = set()
    for statement in statements(ast.parse(source)):
        if isinstance(statement, ast.ImportFrom):
            assert not statement.level, "imports name the package in full"
            base = statement.module or ""
            named |= {f"{base}.{alias.name}" for alias in statement.names} | {base}
        else:
            named |= {alias.name for alias in statement.names}
    inside = {name.removeprefix("ssmdiag.") for name in named if name.startswith("ssmdiag.")}
    if "ssmdiag" in named and not inside:
        inside.add("__init__")
    found = {name for name in inside if name in known}
    # `from package import module` names the package too, which is not what it is after.
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(path.read_text(), known) - {name} for name, path in known.items()}


def test_every_room_has_its_place() -> None:
    rooms = {name.partition(".")[0] for name in modules()}
    assert rooms == set(ORDER)


def test_nothing_imports_upwards(graph: dict[str, set[str]]) -> None:
    rank = {room: place for place, room in enumerate(ORDER)}
    upwards = [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if rank[other.partition(".")[0]] > rank[name.partition(".")[0]]
    ]
    assert not upwards


def test_no_files_import_each_other_in_a_circle(graph: dict[str, set[str]]) -> None:
    left = {name: set(others) for name, others in graph.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"in or above a circle: {sorted(left)}"


def test_at_most_eight_modules_are_at_the_top() -> None:
    assert len(list(ROOT.glob("*.py"))) <= MOST_AT_THE_TOP


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from ssmdiag.kernel.powers import retention", {"kernel.powers"}),
        ("def f():\n    import ssmdiag.errors", {"errors"}),
        ("from ssmdiag.kernel import powers", {"kernel.powers"}),
        ("if TYPE_CHECKING:\n    from ssmdiag.errors import SsmdiagError", set()),
        ("import ssmdiag", {"__init__"}),
        ("import torch", set()),
    ],
)
def test_what_a_source_imports_is_seen(source: str, found: set[str]) -> None:
    assert imports(source, modules()) == found


def test_nothing_is_first_imported_while_a_test_replaces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.relative_to(ROOT.parent).with_suffix("") for path in ROOT.rglob("*.py")}
    modules = {".".join(path.parts).removesuffix(".__init__") for path in files} - {"ssmdiag.__main__"}
    assert modules <= set(sys.modules)
