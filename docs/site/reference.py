"""The reference pages that are read off the code: configs, and what algorithms and problems take.

What a key means stands in the models that check configs, and nowhere else; the pages are made when the site is built.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import table, text
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

Schema = Mapping[str, Any]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    root = str(Path(config.config_file_path).parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    for name, lines in (("configuration", configuration()), ("options", options())):
        files.append(File.generated(config, f"reference/{name}.md", content="\n".join(lines) + "\n"))
    return files


# ---- configs ----


def configuration() -> Iterator[str]:
    """Every table of a config, and every key of it."""
    from fedbilevel.config.tables import Config
    from fedbilevel.config.tune import Best, Range
    from fedbilevel.data import DATASETS, PARTITIONS
    from fedbilevel.data.partitions import partition_source, partition_table
    from fedbilevel.results.targets import Target

    schema = Config.model_json_schema()
    yield "# Configuration"
    yield "\nA config is a TOML file. `fedbilevel init` writes one that says all of this of every key, and"
    yield "[First comparison](../tutorials/first_comparison.md) runs one. An unknown key is refused, with the nearest"
    yield "known one. `--set table.key=value` overrides a key from the command line.\n"
    plain = {key: field for key, field in schema["properties"].items() if not _is_table(field, schema)}
    yield from _section("Top level", "", {"properties": plain}, schema)
    for key, field in schema["properties"].items():
        if _is_table(field, schema):
            yield from _tables(key, _resolved(field, schema), schema)
    yield "\n## Partitions: `data.partition`\n"
    rows: list[Sequence[str]] = []
    for name, line in PARTITIONS.items():
        rows.append((f"`{name}`", text(f"{line}; by {partition_source(name)}"), "", "", ""))
        for key, default, told, allowed in partition_table(name):
            rows.append(("", "", f"`{key}`", text(f"{told}: {allowed}" if told else allowed), _shown(default)))
    yield from table(("partition", "what", "parameter", "meaning", "default"), rows)
    yield "\n## Data sets: `data.name`\n"
    own = ("`NAME`", "the file NAME.npz in `$FEDBILEVEL_DATA`, with arrays x_train, y_train, x_test, y_test")
    yield from table(("name", "what"), [*((f"`{name}`", line) for name, line in DATASETS.items()), own])
    yield "\n## An entry of `run.targets`, and `tune.target`\n"
    yield "A test accuracy, such as `0.9`, or a table:\n"
    yield from _keys(Target.model_json_schema(), Target.model_json_schema())
    yield "\n## `tune.best`\n"
    yield "The name of a column, or a table, which a problem's own measures need:\n"
    yield from _keys(Best.model_json_schema(), Best.model_json_schema())
    yield "\n## A range of `[tune]`\n"
    yield "A list of values to choose from, or a table:\n"
    yield from _keys(Range.model_json_schema(), Range.model_json_schema())


def _tables(name: str, field: Schema, root: Schema) -> Iterator[str]:
    """A table, and the tables below it."""
    below = {key: each for key, each in field["properties"].items() if _is_table(each, root)}
    keys = {key: each for key, each in field["properties"].items() if key not in below}
    yield from _section(f"`[{name}]`", str(field.get("description", "")), {"properties": keys}, root)
    for key, each in below.items():
        yield from _tables(f"{name}.{key}", _resolved(each, root), root)


def _section(title: str, told: str, schema: Schema, root: Schema) -> Iterator[str]:
    yield f"\n## {title}\n"
    if told:
        yield f"{text(told)}\n"
    yield from _keys(schema, root)


def _keys(schema: Schema, root: Schema) -> Iterator[str]:
    from fedbilevel.config.validation import described, meaning

    required = set(schema.get("required", ()))
    rows = []
    for key, field in schema["properties"].items():
        default = field.get("default")
        shown = "required" if key in required else "–" if default in (None, {}) else f"`{json.dumps(default)}`"
        rows.append((f"`{key}`", text(meaning(field)), text(described(field, root)), shown))
    yield from table(("key", "meaning", "allowed", "default"), rows)


def _resolved(field: Schema, root: Schema) -> Schema:
    ways = [way for way in field.get("anyOf", [field]) if way.get("type") != "null"]
    reference = ways[0].get("$ref") if len(ways) == 1 else None
    return root["$defs"][reference.rsplit("/", 1)[1]] if reference else field


def _is_table(field: Schema, root: Schema) -> bool:
    return "properties" in _resolved(field, root)


# ---- algorithms and problems ----


def options() -> Iterator[str]:
    """What every algorithm and every problem takes."""
    from experiments.catalogue.entries import documented
    from fedbilevel.config.build import documentation, needs_data, parameters_of
    from fedbilevel.config.validation import described, meaning
    from fedbilevel.problems import PROBLEMS
    from server.kit.algorithm import algorithms
    from server.kit.options import UpperOptions

    yield "# Algorithms and problems: what they take"
    yield "\n`fedbilevel list NAME` prints the same. Options stand in `[options]`, for every algorithm that has them,"
    yield "or in `[algorithms.NAME]`, which goes before; parameters of a problem stand in `[problem]`."
    server = set(UpperOptions.model_fields) - {"upper_step"}
    schema = UpperOptions.model_json_schema()
    yield "\n## The server's step\n"
    yield "Every algorithm whose server moves x along a direction takes these too.\n"
    rows = []
    for key in UpperOptions.model_fields:
        if key in server:
            field = schema["properties"][key]
            rows.append((f"`{key}`", text(meaning(field)), text(described(field, schema)), _default(field)))
    yield from table(("option", "meaning", "allowed", "default"), rows)
    for name, entry in algorithms().items():
        schema = entry.options.model_json_schema()
        yield f"\n## `{name}`\n"
        yield f"{text(entry.summary)}\n"
        yield f"Source: {text(entry.source)}. " + ". ".join(
            f"{word}: {text(said)}"
            for word, said in (("Confirmed", entry.confirmed), ("Our reading", entry.reading), ("Biased", entry.biased))
            if said
        )
        yield ""
        rows = [
            (f"`{key}`", text(meaning(field)), text(described(field, schema)), _default(field))
            for key, field in schema["properties"].items()
            if key not in server
        ]
        yield from table(("option", "meaning", "allowed", "default"), rows)
    for name, (_, line) in PROBLEMS.items():
        yield f"\n## Problem `{name}`\n"
        yield text(line) + ("; takes the data set of `[data]`" if needs_data(name) else "") + "\n"
        told = documented(documentation(name))
        rows = [
            (f"`{key}`", text(told.get(key, "")), text(allowed), "the run's" if key == "seed" else _shown(default))
            for key, (default, allowed) in parameters_of(name).items()
        ]
        yield from table(("parameter", "meaning", "allowed", "default"), rows)


def _shown(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "required"
    return "–" if default is None else f"`{json.dumps(default, default=str)}`"


def _default(field: Schema) -> str:
    default = field.get("default")
    return "–" if default is None else f"`{json.dumps(default)}`"
