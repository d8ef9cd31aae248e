"""The page of the command line: every command, its arguments and options, read off the application."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import typer
from cells import table, text
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    root = str(Path(config.config_file_path).parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    files.append(File.generated(config, "reference/command_line.md", content="\n".join(command_line()) + "\n"))
    return files


def command_line() -> Iterator[str]:
    """Every command, its arguments and options."""
    from experiments.cli import app

    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    yield "# Command line"
    yield "\nExit status: 0 done; 1 a run failed (the others finish, all rows are kept); 2 bad input, with one line"
    yield "that names the key, the value and what is allowed; 130 interrupted. `python -m fedbilevel` is the same."
    for name, command in group.commands.items():
        context = click.Context(command, info_name=name)
        yield f"\n## `fedbilevel {name}`\n"
        yield f"{text(command.help or '')}\n"
        usage = " ".join(command.collect_usage_pieces(context))
        yield f"```text\nfedbilevel {name} {usage}\n```\n".replace("\\[", "[")
        yield from table(("takes", "what"), [(f"`{typed(each)}`", text(told(each))) for each in command.params])


def typed(parameter: click.Parameter) -> str:
    """A parameter as it is typed: its names, and what follows them."""
    if isinstance(parameter, click.Option):
        value = [] if parameter.is_flag else [parameter.metavar or parameter.type.name.upper()]
        return " ".join(["/".join([*parameter.opts, *parameter.secondary_opts]), *value])
    return str(parameter.metavar or parameter.human_readable_name)


def told(parameter: click.Parameter) -> str:
    """What the help says of a parameter, and its default where the help does not."""
    said = str(getattr(parameter, "help", None) or "").replace("\\[", "[")
    set_to = parameter.default
    return (
        said
        if callable(set_to) or not isinstance(set_to, str | int) or set_to is False
        else f"{said} Default: {set_to}."
    )
