"""What an algorithm is to the server: pure functions over a frozen state, and the table of all of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from clients.methods import methods
from clients.operations import OPERATIONS
from fedbilevel.config.validation import validated
from fedbilevel.errors import BadInput, unknown, users_code
from fedbilevel.federation.rounds import Federation
from fedbilevel.problem import Problem, has_one_loss
from fedbilevel.problems.inspection import is_cross_entropy
from fedbilevel.tasks import is_local
from fedbilevel.user_files import UserFile, file_of, is_users, module_of, names_file
from server.kit.optimisers import Moments, moved, plain
from server.kit.options import Options, UpperOptions
from server.kit.spectral import blocks


@dataclass(frozen=True)
class State:
    """What every algorithm carries from one outer iteration to the next; algorithms add their own vectors.

    hypergradient: the direction in which x was moved last (None before the first iteration); index: Q or N' if drawn;
    first, second, lengths, steps: what the server's optimiser carries, and how many steps it has made.
    """

    x: Tensor
    y: Tensor
    hypergradient: Tensor | None = None
    index: int | None = None
    first: Tensor | None = None
    second: Tensor | None = None
    lengths: tuple[float, ...] | None = None
    steps: int = 0


S = TypeVar("S", bound=State)
Lower = Literal["global", "local", "minimax", "any"]
"""Lower levels: the clients' common one, one of each client's own, that of a minimax problem (also a global one)."""
_KINDS: Mapping[Lower, str] = {
    "global": "a problem with a global lower level",
    "local": "a problem with a local lower level",
    "minimax": "a minimax problem, which has no lower loss,",
}
_ACCEPTS: Mapping[Lower, frozenset[Lower]] = {
    "global": frozenset(("global", "minimax")),
    "local": frozenset(("local",)),
    "minimax": frozenset(("minimax",)),
    "any": frozenset(("global", "minimax", "local")),
}
NEEDS = {
    "features": "a problem whose network ends in a linear softmax head (with `features` and `classes`)",
    "flow": "a problem whose network ends in a linear softmax head (with `features` and `classes`), and whose support "
    "loss is the mean cross-entropy alone, without a regulariser",
    "kind": "a problem whose tasks have labels, of classes or of a curve (with a `kind`)",
}
"""What some algorithms need of a problem beyond the protocol: an attribute, not None, and what it stands for; `flow` is
that of a head on the cross-entropy."""


@dataclass(frozen=True)
class Algorithm(Generic[S]):
    """init(x0, y0) is the first state, step(state, federation) one outer iteration.

    rounds(index) is the number of communication rounds of an iteration by the paper's formula, where `index` is the
    random Q or N' of that iteration (None for the fixed sum); with a local lower level it is one for any algorithm.
    evaluate(state, problem, federation) gives the measures of a history row where they depend on how the algorithm
    adapts; None: the losses at x and y, and the problem's own.
    """

    init: Callable[[Tensor, Tensor], S]
    step: Callable[[S, Federation], S]
    rounds: Callable[[int | None], int]
    evaluate: Callable[[S, Problem, Federation], Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Entry:
    """A row of the table: the algorithm's name, one line of what it is, its source, options and factory.

    lower: the problems that it solves; needs: what it needs of them beyond that, a key of NEEDS. confirmed, reading:
    what of it the paper's abstract, tables or public code confirm, and what is our reading of it, or our own; biased:
    what its direction is, where that does not tend to the hypergradient, whatever its terms and rounds.
    """

    name: str
    summary: str
    source: str
    options: type[Options]
    factory: Callable[[Any], Algorithm[Any]]
    lower: Lower = "global"
    needs: str | None = None
    confirmed: str = ""
    reading: str = ""
    biased: str = ""

    @property
    def family(self) -> str:
        """The room below `server/algorithms` in which it lives; "users" for one of a user's own file."""
        home = self.factory.__module__.split(".")
        return home[2] if home[:2] == ["server", "algorithms"] else "users"

    def hold(self, problem: Problem, key: str) -> None:
        """Raises BadInput for a problem that this algorithm does not solve."""
        kind: Lower = "local" if is_local(problem) else "minimax" if has_one_loss(problem) else "global"
        if kind not in _ACCEPTS[self.lower]:
            fit = ", ".join(algorithms(kind))
            raise BadInput(key, self.name, f"for {_KINDS[kind]} one of {fit}")
        if self.needs is not None and not self.served(problem):
            fit = ", ".join(name for name, entry in algorithms(kind).items() if entry.served(problem))
            raise BadInput(key, self.name, f"{NEEDS[self.needs]}; for this problem one of {fit}")

    def served(self, problem: Problem) -> bool:
        """Whether the problem has what this algorithm needs of it."""
        if self.needs == "flow":
            return is_local(problem) and getattr(problem, "features", None) is not None and is_cross_entropy(problem)
        return self.needs is None or getattr(problem, self.needs, None) is not None

    def make(self, options: Mapping[str, Any], key: str = "options") -> Algorithm[Any]:
        """Build the algorithm. Raises BadInput, naming the option under `key`, for options it cannot use."""
        return self.build(self.parse(options, key))

    def build(self, options: Options) -> Algorithm[Any]:
        """Build the algorithm from checked options. Raises BadInput for a factory of the user's own that fails."""
        with users_code(lambda said: BadInput("algorithm", self.name, f"a factory that runs, but it raised {said}")):
            options.hold()
            algorithm = self.factory(options)
        return optimised(algorithm, options) if isinstance(options, UpperOptions) else algorithm

    @property
    def file(self) -> UserFile | None:
        """The user's own file that entered it."""
        return file_of(self.factory.__module__)

    @property
    def client_files(self) -> tuple[UserFile, ...]:
        """That file, where clients have to run what it holds: operations or methods of its own."""
        file = self.file
        held = [*OPERATIONS, *methods()]
        return () if file is None or not any(key.startswith(f"{file.module_name}:") for key in held) else (file,)

    def parse(self, options: Mapping[str, Any], key: str = "options") -> Options:
        """The options, checked. Raises BadInput."""
        return validated(self.options, options, key)


def optimised(algorithm: Algorithm[S], o: UpperOptions) -> Algorithm[S]:
    """Let the server take the algorithm's x step by its optimiser: plain ones change nothing, to the bit.

    The direction is the hypergradient where x moved along it, else, after local steps, (x - x_next) / alpha.
    """
    if plain(o):
        return algorithm

    def step(state: S, fed: Federation) -> S:
        done = algorithm.step(state, fed)
        h = done.hypergradient
        if h is None or not torch.equal(done.x, state.x - o.upper_step * h):
            h = displacement(state.x, done.x, o.upper_step)
        if h is None:  # alpha = 0
            return done
        before = Moments(state.first, state.second, state.steps, state.lengths)
        layout = blocks(fed.x_shapes, len(h)) if o.upper_optimiser == "spectral" else None
        x, after = moved(state.x, h, before, o, layout)
        first, second, norms = after.first, after.second, after.lengths
        return replace(done, x=x, first=first, second=second, lengths=norms, steps=after.steps)

    return replace(algorithm, step=step)


_TABLE: dict[str, Entry] = {}
_OF_FILES: list[Entry] = []
"""What users' own files have entered: found by file and name alone, so that no two of them can meet."""


def algorithm(
    name: str,
    *,
    source: str,
    options: type[Options],
    lower: Lower = "global",
    needs: str | None = None,
    confirmed: str = "",
    reading: str = "",
    biased: str = "",
) -> Callable[[Callable[[Any], Algorithm[Any]]], Callable[[Any], Algorithm[Any]]]:
    """Enter a factory into the table; the first line of its docstring is the summary.

    Raises ValueError for a name that another module has entered, unless it is a user's own file, which is found by its
    path.
    """

    def enter(factory: Callable[[Any], Algorithm[Any]]) -> Callable[[Any], Algorithm[Any]]:
        summary = ((factory.__doc__ or "").strip().splitlines() or [name])[0]
        entry = Entry(name, summary, source, options, factory, lower, needs, confirmed, reading, biased)
        if is_users(factory.__module__):
            _OF_FILES.append(entry)
        elif name in _TABLE and _TABLE[name].factory.__module__ != factory.__module__:
            raise ValueError(f"two algorithms are called {name}")
        else:
            _TABLE[name] = entry
        return factory

    return enter


def algorithms(lower: Lower = "any") -> Mapping[str, Entry]:
    """Return every algorithm by name, or those for problems with such a lower level.

    Each file below `server/algorithms` enters its own.
    """
    package = importlib.import_module("server.algorithms")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    return {name: entry for name, entry in sorted(_TABLE.items()) if lower == "any" or lower in _ACCEPTS[entry.lower]}


def find(name: str, key: str = "algorithm") -> Entry:
    """The algorithm of this name, or of a user's own file, `path/to/file.py:name`.

    There `name` is that of the decorated factory, or the one that it was entered under.

    Raises BadInput with the nearest known name, or with what is wrong with the file.
    """
    if names_file(name):
        return _of_file(name, key)
    table = algorithms()
    if name not in table:
        raise unknown(key, name, [*table, "path/to/file.py:name"])
    return table[name]


def _of_file(name: str, key: str) -> Entry:
    path, _, wanted = name.rpartition(":")
    module = module_of(name, key)
    factory = getattr(module, wanted, None)
    own = [entry for entry in _OF_FILES if entry.factory.__module__ == module.__name__]
    for entry in [*own, *algorithms().values()]:
        if entry.factory is factory or (entry.name == wanted and entry in own):
            return replace(entry, name=name)
    if own:
        raise unknown(key, name, [f"{path}:{entry.name}" for entry in own])
    allowed = "a file that enters an algorithm, a factory below @algorithm(...), and this one enters none"
    raise BadInput(key, name, allowed)


def option_names(*entries: Entry) -> frozenset[str]:
    """Every option that an algorithm of the table takes, or one of these."""
    return frozenset(name for entry in (*algorithms().values(), *entries) for name in entry.options.model_fields)


def draw_index(fed: Federation, estimator: str, N: int, indices: Sequence[int] | None) -> int | None:
    """Q or N' of this iteration: from `indices` if given, else uniform on {0, ..., N-1}; None for the fixed sum.

    Raises BadInput if the list is too short or an index is not below N.
    """
    if estimator == "sum":
        return None
    if N < 1:
        raise BadInput("neumann_terms", N, 'an integer of at least 1 with estimator = "sample"')
    if indices is None:
        return int(fed.random("index").integers(N))
    if fed.iteration >= len(indices):
        raise BadInput("indices", list(indices), f"one index per outer iteration (none for iteration {fed.iteration})")
    index = indices[fed.iteration]
    if index >= N:
        raise BadInput(f"indices[{fed.iteration}]", index, f"an integer from 0 to {N - 1}")
    return index


def displacement(x: Tensor, x_next: Tensor, upper_step: float, steps: float = 1.0) -> Tensor | None:
    """The direction of local x steps as the server sees it: (x - x_next) / alpha, of one of so many steps."""
    return (x - x_next) / (upper_step * steps) if upper_step > 0 else None
