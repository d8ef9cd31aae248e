"""The names that a config can hold, read off the text of the files that define them.

A Tab key cannot wait for torch, so nothing is imported here: a table or a model is found where it is written down.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Sequence

from fedbilevel.packages import ROOT

_ENTERED = re.compile(r'^@algorithm\(\s*"([^"]+)"', re.MULTILINE)
TABLES = {
    "problem": ("fedbilevel/problems/__init__.py", "PROBLEMS"),
    "network": ("fedbilevel/problems/networks/named.py", "NETWORKS"),
    "data set": ("fedbilevel/data/datasets.py", "DATASETS"),
    "partition": ("fedbilevel/data/partitions.py", "_KINDS"),
    "server optimiser": ("server/kit/optimisers.py", "OPTIMISERS"),
    "schedule": ("server/kit/optimisers.py", "SCHEDULES"),
    "engine": ("server/grids/engines.py", "ENGINES"),
}
"""Where the names of each kind stand, as the keys of a table."""
MODELS = {
    "run": ("fedbilevel/config/tables.py", "RunTable"),
    "data": ("fedbilevel/config/tables.py", "DataTable"),
    "systems": ("fedbilevel/federation/systems.py", "Systems"),
    "systems.network": ("fedbilevel/federation/systems.py", "Network"),
    "engine": ("fedbilevel/config/tables.py", "EngineTable"),
    "tune": ("fedbilevel/config/tune.py", "TuneTable"),
}
"""Where the keys of each table of a config stand, as the fields of a model."""


@functools.cache
def _tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def _value(file: str, name: str) -> ast.expr | None:
    """What a module assigns to a name."""
    for node in _tree(file).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return node.value
    return None


def _strings(nodes: Sequence[ast.expr | None]) -> list[str]:
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def named(kind: str) -> list[str]:
    """The names of a kind of `TABLES`."""
    table = _value(*TABLES[kind])
    return _strings(table.keys) if isinstance(table, ast.Dict) else []


def listed(file: str, name: str) -> list[str]:
    """The strings of a tuple that a module writes out."""
    found = _value(file, name)
    return _strings(found.elts) if isinstance(found, ast.Tuple) else []


def algorithms() -> list[str]:
    """The algorithms: what each file below `server/algorithms` enters."""
    files = sorted((ROOT / "server" / "algorithms").rglob("*.py"))
    return sorted({name for file in files for name in _ENTERED.findall(file.read_text(encoding="utf-8"))})


def keys(table: str) -> list[str]:
    """The keys of a table of `MODELS`."""
    file, model = MODELS[table]
    return [key for node in _tree(file).body if _is_class(node, model) for key in _fields(node)]


def options() -> list[str]:
    """The options of all algorithms: the fields of every model that is called so."""
    found: dict[str, None] = {}
    for folder in ("kit", "algorithms"):
        for file in sorted((ROOT / "server" / folder).rglob("*.py")):
            if "Options(" in file.read_text(encoding="utf-8"):
                for node in _tree(str(file.relative_to(ROOT))).body:
                    if isinstance(node, ast.ClassDef) and node.name.endswith("Options"):
                        found |= dict.fromkeys(_fields(node))
    return list(found)


def parameters(problem: str) -> list[str]:
    """What a built-in problem takes; nothing for any other name."""
    table = _value(*TABLES["problem"])
    if not isinstance(table, ast.Dict):
        return []
    for key, row in zip(table.keys, table.values, strict=True):
        if _strings([key]) == [problem] and isinstance(row, ast.Tuple) and isinstance(row.elts[0], ast.Name):
            return _signature(row.elts[0].id)
    return []


def partition_parameters(partition: str) -> list[str]:
    """What a partition takes; nothing for an unknown one."""
    table = _value(*TABLES["partition"])
    if isinstance(table, ast.Dict):
        for key, kind in zip(table.keys, table.values, strict=True):
            if _strings([key]) == [partition] and isinstance(kind, ast.Call):
                return [name for part in kind.args if isinstance(part, ast.Dict) for name in _strings(part.keys)]
    return []


def _signature(factory: str) -> list[str]:
    for file in sorted((ROOT / "fedbilevel" / "problems").rglob("*.py")):
        if re.search(rf"^(class|def) {factory}\b", file.read_text(encoding="utf-8"), re.MULTILINE):
            for node in _tree(str(file.relative_to(ROOT))).body:
                for made in _made(node, factory):
                    taken = [each.arg for each in (*made.args.args, *made.args.kwonlyargs)]
                    return [name for name in taken if name not in ("self", "data", "dtype")]
    return []


def _made(node: ast.stmt, factory: str) -> Iterator[ast.FunctionDef]:
    """The function of this name, or how the class of this name is made."""
    if isinstance(node, ast.FunctionDef) and node.name == factory:
        yield node
    if isinstance(node, ast.ClassDef) and node.name == factory:
        yield from (part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__")


def _is_class(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.ClassDef) and node.name == name


def _fields(node: ast.stmt) -> list[str]:
    parts = [part for part in getattr(node, "body", []) if isinstance(part, ast.AnnAssign)]
    return [
        part.target.id
        for part in parts
        if isinstance(part.target, ast.Name) and not ast.unparse(part.annotation).startswith("ClassVar")
    ]
