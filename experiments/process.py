"""One command line as a process: its exit status, its signals, and one line for whatever was wrong.

Exit status: 0 done, 1 a run failed, 2 bad input (one line on stderr), 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, get_type_hints

import click
import typer
from typer.core import TyperArgument, TyperCommand
from typer.models import ArgumentInfo

from experiments.completion.shell import VARIABLE, answer, completing, status
from experiments.terminal import complain


class Command(TyperCommand):
    """A command whose help says what its arguments are, and does not show typer's backslashes for rich.

    With click 8.5 the arguments of typer 0.20, the version that flwr caps, lose what was said of them.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        hints = get_type_hints(self.callback, include_extras=True)
        for each in self.params:
            if isinstance(each, TyperArgument) and each.help is None:
                said = getattr(hints.get(str(each.name)), "__metadata__", ())
                each.help = next((info.help for info in said if isinstance(info, ArgumentInfo)), None)

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Nothing: typer writes them with the options, click 8.5 would write them again."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help."""
        super().format_help(ctx, formatter)
        formatter.buffer[:] = [text.replace("\\[", "[") for text in formatter.buffer]


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a run as Ctrl-C does."""


@contextmanager
def _termination() -> Iterator[None]:
    """SIGTERM raises Terminated while this lasts."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _once(message: str) -> str:
    """Typer and click each add the hint to an unknown command."""
    hint = message[message.find(" Did you mean") :] if " Did you mean" in message else ""
    return (
        message.removesuffix(hint) + hint[: len(hint) // 2] if hint and hint == 2 * hint[: len(hint) // 2] else message
    )


def run_command_line(app: typer.Typer, arguments: Sequence[str] | None) -> int:
    """Run one command line of an app (default: that of the process) and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter must not end a run
    # threads that wait spin by default, and two processes that do on two cores take ten times as long; a short spin,
    # in GNU's OpenMP, costs them a tenth, and spares one process alone a fifth of its time
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which measures memory, talks on stderr
    command = typer.main.get_command(app)
    given = sys.argv[1:] if arguments is None else list(arguments)
    if VARIABLE in os.environ:
        return answer(command, given)
    try:
        with _termination(), completing(given), command.make_context("fedbilevel", given) as context:
            return int(command.invoke(context) or 0)
    except SystemExit as done:  # typer's way out after it has shown or installed completion
        return status(done)
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except click.ClickException as error:
        asked = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "fedbilevel"
        complain(f"{_once(error.format_message()).rstrip('.')} (see {asked} --help)")
        return 2
    except KeyboardInterrupt as interrupt:
        complain("interrupted")
        return 143 if isinstance(interrupt, Terminated) else 130
    except Exception as error:
        from fedbilevel.errors import BadInput, RunFailed

        if not isinstance(error, BadInput | RunFailed):
            raise
        complain(str(error))
        return 2 if isinstance(error, BadInput) else 1
