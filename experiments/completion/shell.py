"""The shell's side: it calls the command with a variable set and reads what is printed; and how it is told to do so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import shellingham

from fedbilevel.errors import BadInput

VARIABLE = "_FEDBILEVEL_COMPLETE"
"""Set where a shell asks for completions: complete_bash, complete_zsh, complete_fish."""
INSTALL, SHOW = "--install-completion", "--show-completion"
_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")


def answer(command: click.Command, given: Sequence[str]) -> int:
    """Print what completes the words that the shell has put into the environment; the exit status."""
    try:
        command.main(list(given), prog_name="fedbilevel")  # which ends in sys.exit
    except SystemExit as done:
        return status(done)


def status(done: SystemExit) -> int:
    """The exit status that was meant."""
    return done.code if isinstance(done.code, int) else int(done.code is not None)


@contextmanager
def completing(given: Sequence[str]) -> Iterator[None]:
    """See that the completion which is asked for can be shown or installed, if it is.

    Raises BadInput where it is not typed in a shell that can complete, and for files of it that cannot be written.
    """
    option = next((each for each in given if each in (INSTALL, SHOW)), None)
    if option is None:
        yield
        return
    allowed = "to be typed in bash, zsh, fish or PowerShell"
    try:
        shell = shellingham.detect_shell()[0]
    except (shellingham.ShellDetectionFailure, OSError) as error:
        raise BadInput(option, "no shell that can be told", allowed) from error
    if shell not in _SHELLS:
        raise BadInput(option, shell, allowed)
    try:
        yield
    except OSError as error:
        told = f"files below {Path.home()} that can be written ({error.strerror})"
        raise BadInput(option, error.filename or shell, f"{told}; or {SHOW}") from error
