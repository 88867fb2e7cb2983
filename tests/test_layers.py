"""The rooms of the package stand on each other: a file imports from its own room and from rooms above it, never below.

Imports inside functions count as well. What stands under `if TYPE_CHECKING` counts for the order, and not for circles
between files: a class and the reader of its own checkpoint may name each other as types.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "vlm_detect"

# From the top down. Files at the root of the package stand in the first room but for those that are named here.
ROOMS = (
    "root",
    "jobs",
    "images",
    "stats",
    "measures",
    "questions",
    "pages",
    "models",
    "infer",
    "data",
    "generate",
    "train",
    "benchmark",
    "cnn",
    "nano",
    "apps",
    "cli",
)
# What `import vlm_detect` offers is loaded from its room when it is asked for: names, and no step of the work.
DOORS = {"vlm_detect"}


class Import(NamedTuple):
    importer: str
    imported: str
    line: int
    typing_only: bool


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room_of(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1:
        return "root"
    if parts[1] == "__main__":
        return "cli"
    return parts[1] if parts[1] in ROOMS else "root"


def imports_of(module: str, path: Path) -> Iterator[Import]:
    """Every import of the package's own modules, of a name inside one or of the module itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]
        else:
            continue
        for name in names:
            if name in MODULES and name != module:
                yield Import(module, name, node.lineno, id(node) in typing_only)


IMPORTS = [found for module, path in MODULES.items() for found in imports_of(module, path)]


def climbing(imports: list[Import]) -> list[Import]:
    order = {room: place for place, room in enumerate(ROOMS)}
    return [i for i in imports if i.importer not in DOORS and order[room_of(i.imported)] > order[room_of(i.importer)]]


def circles(imports: list[Import]) -> list[list[str]]:
    """The groups of files that import each other in a circle (Tarjan's strongly connected components)."""
    after: dict[str, set[str]] = {}
    for one in imports:
        if not one.typing_only and one.importer not in DOORS:
            after.setdefault(one.importer, set()).add(one.imported)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(after.get(module, ())):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            place = stack.index(module)
            found.append(sorted(stack[place:]))
            del stack[place:]

    for module in MODULES:
        if module not in index:
            visit(module)
    return [group for group in found if len(group) > 1]


def test_no_import_is_against_the_order_of_rooms():
    wrong = [f"{i.importer}:{i.line} imports {i.imported}" for i in climbing(IMPORTS)]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other():
    assert circles(IMPORTS) == []


def test_every_folder_is_a_room():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == set(ROOMS) - {"root", "cli"}


@pytest.mark.parametrize("text", ["from vlm_detect.apps import scan", "def f():\n    import vlm_detect.apps.scan"])
def test_an_import_against_the_order_is_found(text, tmp_path):
    file = tmp_path / "bad.py"
    file.write_text(text, encoding="utf-8")
    assert climbing(list(imports_of("vlm_detect.images.bad", file)))


def test_a_circular_import_is_found():
    def made(importer: str, imported: str) -> Import:
        return Import(f"vlm_detect.{importer}", f"vlm_detect.{imported}", 1, False)

    one = made("images.encode", "images.decode")
    back = made("images.decode", "images.encode")
    assert circles([one, back]) == [["vlm_detect.images.decode", "vlm_detect.images.encode"]]
    assert circles([one, back._replace(typing_only=True)]) == []
