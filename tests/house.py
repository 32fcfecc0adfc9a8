"""Whether the package is still a house: how large its rooms, files and functions are, and which names stand twice.

    python -m tests.house

Limits, and each exception with its reason, stand in pyproject.toml under [tool.house]. What may import what is held by
import-linter. `--largest` prints the ten largest of each kind.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

from tests import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Measure(NamedTuple):
    """How large something is, by one of the kinds that [tool.house.limits] names."""

    kind: str
    name: str
    """Of a room or file below the package, of a function behind its file, or the name that stands twice."""
    size: int
    where: str = ""


def breaches(package: Path, limits: dict[str, int], exceptions: dict[str, dict[str, Any]]) -> list[str]:
    """What is beyond its limit or its exception, and each exception that is not needed or has no reason."""
    told = [f"[tool.house] knows no limit of {kind}" for kind in exceptions if kind not in limits]
    needed = set()
    for kind, name, size, where in measures(package):
        exception = exceptions.get(kind, {}).get(name)
        if size <= limits[kind]:
            continue
        needed.add((kind, name))
        if exception is None:
            told.append(f"{name}: {size} {kind}, at most {limits[kind]}{where}")
        elif size > exception["at_most"]:
            told.append(f"{name}: {size} {kind}, at most {exception['at_most']} as an exception{where}")
    for kind, excepted in exceptions.items():
        told += [f"{name}: the exception for {kind} is not needed" for name in excepted if (kind, name) not in needed]
        told += [
            f"{name}: the exception for {kind} has no reason" for name in excepted if not excepted[name]["because"]
        ]
    return told


def measures(package: Path) -> Iterator[Measure]:
    """All of a package."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}
    lines = {path: len(path.read_text().splitlines()) for path in trees}
    classes: dict[str, list[str]] = defaultdict(list)
    files: dict[str, list[str]] = defaultdict(list)
    for path, tree in trees.items():
        name = path.relative_to(package).as_posix()
        yield Measure("lines of a file", name, lines[path])
        if not path.stem.startswith("__"):
            files[path.stem].append(name)
        for function, qualified in functions(tree):
            yield Measure("lines of a function", f"{name}:{qualified}", length(function))
            yield Measure("positional parameters", f"{name}:{qualified}", positional(function))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(name)
    for room in (path.parent for path in trees if path.name == "__init__.py" and path.parent != package):
        name = room.relative_to(package).as_posix()
        inside = {path: tree for path, tree in trees.items() if room in path.parents}
        yield Measure("entries of a room", name, len({entry(room, path) for path in inside} - {"__init__"}))
        yield Measure("lines of a room", name, sum(lines[path] for path in inside))
        yield Measure("floors of a room", name, floors(package, room, inside))
    for kind, places in [("classes of one name", classes), ("files of one name", files)]:
        for name, found in places.items():
            yield Measure(kind, name, len(found), f" ({', '.join(found)})")


def entry(room: Path, path: Path) -> str:
    """The file or folder of a room that a path lies in."""
    return path.relative_to(room).with_suffix("").parts[0]


def functions(tree: ast.AST, within: str = "") -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """All functions and methods, also those in others, with their qualified names."""
    for node in ast.iter_child_nodes(tree):
        name = within
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{within}.{node.name}".lstrip(".")
            if not isinstance(node, ast.ClassDef):
                yield node, name
        yield from functions(node, name)


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from its `def` to its end, without its docstring.

    >>> length(ast.parse("def f():\\n    '''Says\\n    what.'''\\n    return 1").body[0])
    2
    """

    def lines(node: ast.stmt) -> int:
        return (node.end_lineno or node.lineno) - node.lineno + 1

    return lines(function) - (lines(function.body[0]) if ast.get_docstring(function, clean=False) is not None else 0)


def positional(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters that a call may give by position, without `self` and `cls`.

    >>> positional(ast.parse("def f(self, a, /, b, *rest, c): ...").body[0])
    2
    """
    given = [parameter.arg for parameter in function.args.posonlyargs + function.args.args]
    return len(given) - (given[:1] in (["self"], ["cls"]))


def floors(package: Path, room: Path, inside: Mapping[Path, ast.AST]) -> int:
    """The most entries of a room of which each imports the next one.

    Raises:
        CycleError: entries import each other.
    """
    prefix = ".".join([package.name, *room.relative_to(package).parts, ""])
    imported: dict[str, set[str]] = defaultdict(set)
    for path, tree in inside.items():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                if name.startswith(prefix):
                    imported[entry(room, path)].add(name.removeprefix(prefix).split(".")[0])
    for name, below in imported.items():
        below.discard(name)
    depth: dict[str, int] = {}
    for name in TopologicalSorter(imported).static_order():
        depth[name] = 1 + max((depth[other] for other in imported.get(name, ())), default=0)
    return max(depth.values(), default=1)


def main() -> int:
    """Tell what is wrong with the house of pyproject.toml; 1 if something is."""
    house = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["house"]
    package = ROOT / house["package"]
    if "--largest" in sys.argv:
        by_size = sorted(measures(package), key=lambda measure: -measure.size)
        for kind in house["limits"]:
            print(kind)
            for measure in [measure for measure in by_size if measure.kind == kind][:10]:
                print(f"    {measure.size:>5}  {measure.name}")
    told = breaches(package, house["limits"], house["exceptions"])
    print(*told or ["the house is in order"], sep="\n")
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())
