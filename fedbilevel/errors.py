"""The errors a person is meant to read, and the one place that phrases them.

`BadInput` is the user's mistake (exit status 2); `RunFailed` and its children a run that went wrong (exit status 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

LISTED, NEAREST = 24, 5
"""So many names are listed whole; of more only the nearest are shown."""


class _Nothing:
    """What is found where a required key is missing."""

    def __repr__(self) -> str:
        return "nothing"


NOTHING = _Nothing()


class BadInput(ValueError):
    """Something the user gave cannot be used.

    The message is one line: the key, the value found, and what is allowed.

    >>> print(BadInput("data.clients", 0, "an integer of at least 1"))
    data.clients: got 0; allowed: an integer of at least 1
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        self.key, self.value, self.allowed = key, value, allowed
        shown = " ".join(f"{value!r}".split())
        if len(shown) > 120:
            shown = shown[:117] + "..."
        super().__init__(" ".join(f"{key}: got {shown}; allowed: {allowed}".split()))


class RunFailed(RuntimeError):
    """A run could not go on; the message names algorithm, seed, iteration and operation where they are known.

    `history` holds the rows that the run had made.
    """

    history: Sequence[Mapping[str, object]] = ()


class NonFinite(RunFailed):
    """A loss, a vector or a measure became NaN or infinite."""


class NobodyAnswered(RunFailed):
    """No client answered in a round; the iteration is begun again."""


class ClientFailed(RunFailed):
    """A client raised; the message names the client, the operation and the round."""


def unknown(key: str, value: str, known: Iterable[str]) -> BadInput:
    """The error for a name that is not known, with the nearest known one first.

    >>> print(unknown("algorithm", "fednset", ["aggitd", "fednest"]))
    algorithm: got 'fednset'; allowed: aggitd, fednest (did you mean 'fednest'?)
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(value), names, n=NEAREST, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    if len(names) > LISTED:
        shown = near or difflib.get_close_matches(str(value), names, n=NEAREST, cutoff=0.0)
        return BadInput(key, value, f"{', '.join(shown)} and {len(names) - len(shown)} others" + hint)
    return BadInput(key, value, ", ".join(names) + hint)


@contextmanager
def users_code(refuse: Callable[[str], Exception]) -> Iterator[None]:
    """Run code that a user wrote: whatever it raises, an exit of the program too, becomes the error of `refuse`.

    `refuse` is given what the exception says. Ctrl-C, BadInput and RunFailed pass.
    """
    try:
        yield
    except (KeyboardInterrupt, BadInput, RunFailed):
        raise
    except BaseException as error:
        raise refuse(said(error)) from error


def said(error: BaseException) -> str:
    """What an exception says, after its kind.

    >>> said(KeyError("x"))
    "KeyError: 'x'"
    """
    return f"{type(error).__name__}: {error}".rstrip(": ")
