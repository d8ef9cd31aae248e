"""Which client holds which training examples: flwr-datasets' partitioners by name, and the split into two levels.

The partitioners cut data in the order in which they stand, so the examples are shuffled first, keyed by the seed.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbilevel.data.datasets import random_untouched
from fedbilevel.errors import BadInput, unknown

Indices = NDArray[np.int64]
LEAST = 2  # examples per client: one for the lower level, one for the upper
SHUFFLE = 2**64 - 1  # the stream of draws that belongs to no client


@dataclass(frozen=True)
class _Parameter:
    """A number that a partition takes."""

    default: float
    least: float
    most: float
    whole: bool
    meaning: str = ""

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        return f"{'an integer' if self.whole else 'a number'} from {self.least} to {self.most}"


@dataclass(frozen=True)
class _Kind:
    """A partition: its line for the reader, how it spreads the shuffled labels, what it takes, and its source."""

    line: str
    spread: Callable[..., list[Indices]]
    takes: dict[str, _Parameter]
    source: str


@random_untouched()
def partition(
    labels: NDArray[Any],
    *,
    name: str,
    clients: int,
    seed: int,
    owners: NDArray[Any] | None = None,
    **parameters: float,
) -> list[Indices]:
    """The examples of each client: sorted indices into `labels`, at least two each, none held twice.

    Args:
        labels: integers [n].
        name: one of `PARTITIONS`.
        clients: how many.
        seed: draws everything; equal seeds give equal partitions, in every process.
        owners: [n] whose each example is; only `natural` needs it.
        **parameters: `alpha` and `min_size` of dirichlet, `classes_per_client` of pathological,
            `shards_per_client` of shards, `power` of size_skew.

    Raises:
        BadInput: an unknown name or parameter, a value out of range, or a partition that these data do not allow.

    >>> [part.tolist() for part in partition(np.array([0, 1, 0, 1]), name="pathological", clients=2, seed=0,
    ...                                      classes_per_client=1)]
    [[0, 2], [1, 3]]
    """
    if name not in _KINDS:
        raise unknown("data.partition", name, _KINDS)
    kind = _KINDS[name]
    values = {key: _checked(key, parameters.get(key, of.default), of) for key, of in kind.takes.items()}
    for key, value in parameters.items():
        if key not in kind.takes:
            takes = ", ".join(kind.takes) or "no parameters"
            raise BadInput(f"data.{key}", value, f"not set, for partition {name} takes {takes}")
    _checked("clients", clients, _Parameter(1, 1, 10**9, whole=True))
    if LEAST * clients > len(labels):
        allowed = f"at most {len(labels) // LEAST}, so that each has {LEAST} of the {len(labels)} training examples"
        raise BadInput("data.clients", clients, allowed)
    generator = _generator(seed, SHUFFLE)
    if name == "natural":
        if owners is None:
            allowed = f"one of {', '.join(other for other in _KINDS if other != name)}, for these data name no owners"
            raise BadInput("data.partition", name, allowed)
        return _natural(np.asarray(owners), clients, generator)
    order = generator.permutation(len(labels)).astype(np.int64)
    shuffled = np.asarray(labels, np.int64)[order]
    spread = kind.spread(shuffled, clients, int(generator.integers(2**63)), **values)
    return [np.sort(order[rows]) for rows in spread]


def split_levels(indices: list[Indices], *, validation: float, seed: int) -> tuple[list[Indices], list[Indices]]:
    """Each client's examples, shuffled and split into lower level (training) and upper level (validation).

    The upper part is the share `validation` of a client's examples, rounded, and neither part is empty.
    The draw is keyed by (seed, client), so one client's split does not depend on the others.

    Raises:
        BadInput: `validation` is not between 0 and 1, or a client has fewer than two examples.

    >>> lower, upper = split_levels([np.arange(10)], validation=0.3, seed=0)
    >>> len(lower[0]), len(upper[0])
    (7, 3)
    """
    if not _is_number(validation) or not 0 < validation < 1:
        raise BadInput("data.validation", validation, "a number between 0 and 1, both excluded")
    lower, upper = [], []
    for client, mine in enumerate(indices):
        if len(mine) < LEAST:
            raise BadInput("data.clients", len(indices), f"fewer, for client {client} has {len(mine)} examples, not 2")
        shuffled = _generator(seed, client).permutation(np.asarray(mine, np.int64))
        held = min(max(round(validation * len(mine)), 1), len(mine) - 1)
        lower.append(shuffled[held:])
        upper.append(shuffled[:held])
    return lower, upper


def _iid(labels: Indices, clients: int, seed: int) -> list[Indices]:
    """What IidPartitioner does, with sizes that differ by one at most; it alone keeps no index lists to read."""
    from flwr_datasets.partitioner import SizePartitioner

    few, more = divmod(len(labels), clients)
    return index_lists(SizePartitioner([few + 1] * more + [few] * (clients - more)), labels)


def _dirichlet(labels: Indices, clients: int, seed: int, alpha: float, min_size: int) -> list[Indices]:
    from flwr_datasets.partitioner import DirichletPartitioner

    if min_size * clients > len(labels):
        allowed = f"at most {len(labels) // clients}: {clients} clients share {len(labels)} training examples"
        raise BadInput("data.min_size", min_size, allowed)
    partitioner = DirichletPartitioner(clients, "label", float(alpha), min_size, shuffle=False, seed=seed)
    try:
        return index_lists(partitioner, labels)
    except ValueError as error:  # its ten repetitions are used up
        raise BadInput(
            "data.alpha",
            alpha,
            f"a larger one, fewer clients than {clients} or another seed: "
            f"in eleven draws some client always had fewer than {min_size} of the {len(labels)} training examples",
        ) from error


def _pathological(labels: Indices, clients: int, seed: int, classes_per_client: int) -> list[Indices]:
    from flwr_datasets.partitioner import PathologicalPartitioner

    key = "data.classes_per_client"
    classes, counts = np.unique(labels, return_counts=True)
    if classes_per_client > len(classes):
        raise BadInput(key, classes_per_client, f"at most {len(classes)}, the number of classes in the training data")
    # The first class of client c is c modulo the classes: every class is used as soon as there are that many clients.
    mode = "deterministic" if classes_per_client == len(classes) else "first-deterministic"
    partitioner = PathologicalPartitioner(clients, "label", classes_per_client, mode, shuffle=False, seed=seed)
    try:
        lists = index_lists(partitioner, labels)
    except ValueError as error:  # more clients are to share a class than it has examples
        least, rarest = int(counts.min()), int(classes[counts.argmin()])
        allowed = f"fewer: more clients share a class than it has examples (class {rarest} has only {least})"
        raise BadInput("data.clients", clients, f"{allowed}; or fewer classes_per_client") from error
    unused = np.setdiff1d(classes, labels[np.concatenate(lists)])
    if unused.size:
        raise BadInput(
            key,
            classes_per_client,
            f"{len(classes)} classes per client, or {len(classes)} clients or more: "
            f"with {clients} clients no one holds the classes {unused.tolist()}",
        )
    for client, rows in enumerate(lists):
        if len(rows) < LEAST:
            allowed = f"more, or fewer clients than {clients}: client {client} has {len(rows)} examples, not {LEAST}"
            raise BadInput(key, classes_per_client, allowed)
    return lists


def _shards(labels: Indices, clients: int, seed: int, shards_per_client: int) -> list[Indices]:
    from flwr_datasets.partitioner import ShardPartitioner

    size = len(labels) // (clients * shards_per_client)
    if size * shards_per_client < LEAST:
        most = len(labels) // clients
        allowed = f"at most {most} for {clients} clients and {len(labels)} examples, and every client two examples"
        raise BadInput("data.shards_per_client", shards_per_client, allowed)
    partitioner = ShardPartitioner(clients, "label", shards_per_client, shuffle=False, seed=seed)
    return index_lists(partitioner, labels)


def _size_skew(labels: Indices, clients: int, seed: int, power: float) -> list[Indices]:
    """Two examples each, and the rest in proportion to (c + 1)^power; what rounding leaves goes to the last client."""
    from flwr_datasets.partitioner import SizePartitioner

    units = (np.arange(1, clients + 1) / clients) ** power
    sizes = LEAST + np.floor((len(labels) - LEAST * clients) * units / units.sum()).astype(np.int64)
    sizes[-1] += len(labels) - sizes.sum()
    return index_lists(SizePartitioner(sizes.tolist()), labels)


def _natural(owners: NDArray[Any], clients: int, generator: np.random.Generator) -> list[Indices]:
    """One client per owner; which owners take part is drawn, in their sorted order."""
    from flwr_datasets.partitioner import NaturalIdPartitioner

    lists = [rows for rows in index_lists(NaturalIdPartitioner("label"), owners) if len(rows) >= LEAST]
    if clients > len(lists):
        raise BadInput("data.clients", clients, f"at most {len(lists)}, the owners with at least {LEAST} examples")
    chosen = np.sort(generator.choice(len(lists), clients, replace=False))
    return [np.sort(lists[owner]) for owner in chosen]


def index_lists(partitioner: Any, labels: NDArray[Any]) -> list[Indices]:
    """The rows of `labels` in each partition of a flwr-datasets partitioner, which reads them as the column "label".

    `load_partition` takes about a millisecond per client, so all lists are read at once from the private
    `_partition_id_to_indices`, which the partitioners used here fill at their first `load_partition`. Those lists
    count the rows of `partitioner.dataset`, which ShardPartitioner sorts; hence the column "row".
    """
    from datasets import Dataset

    # Quiet: repetitions of a draw, unused classes, a deprecated argument of the sort, and a progress bar.
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        partitioner.dataset = Dataset.from_dict({"label": labels, "row": np.arange(len(labels))})
        partitioner.load_partition(0)
    rows = partitioner.dataset.with_format("arrow")[:]["row"].to_numpy()
    lists = partitioner._partition_id_to_indices
    return [rows[np.asarray(lists[client], np.int64)] for client in range(len(lists))]


def _generator(seed: int, stream: int) -> np.random.Generator:
    """The draws of one client, or of the shuffle before the cut."""
    _checked("seed", seed, _Parameter(0, 0, 2**64 - 1, whole=True))
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64)))


def _checked(key: str, value: float, of: _Parameter) -> float:
    """The value if it is a number of the kind and range that the parameter allows."""
    good = _is_number(value) and of.least <= value <= of.most
    if good and (not of.whole or isinstance(value, int | np.integer)):
        return int(value) if of.whole else float(value)
    raise BadInput("seed" if key == "seed" else f"data.{key}", value, of.allowed)


def _is_number(value: object) -> bool:
    """A finite integer or float; True is none."""
    return (
        isinstance(value, int | float | np.integer | np.floating)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


_KINDS = {
    "iid": _Kind("every client draws from all examples alike, in equal parts", _iid, {}, "SizePartitioner"),
    "dirichlet": _Kind(
        "class proportions drawn from Dirichlet(alpha): the smaller alpha, the more the clients differ",
        _dirichlet,
        {
            "alpha": _Parameter(0.3, 1e-3, 1e6, False, "concentration: large, clients alike; small, few classes each"),
            "min_size": _Parameter(2, LEAST, 10**9, True, "a draw that leaves a client fewer examples is repeated"),
        },
        "DirichletPartitioner (Yurochkin et al., ICML 2019)",
    ),
    "pathological": _Kind(
        "every client holds exactly classes_per_client classes",
        _pathological,
        {"classes_per_client": _Parameter(2, 1, 10**6, True, "classes of every client, at most all")},
        "PathologicalPartitioner (Li et al., Federated Learning on Non-IID Data Silos, ICDE 2022)",
    ),
    "shards": _Kind(
        "examples sorted by class, cut into equal shards, shards_per_client for each client",
        _shards,
        {"shards_per_client": _Parameter(2, 1, 10**6, True, "equal shards of every client")},
        "ShardPartitioner (McMahan et al., AISTATS 2017)",
    ),
    "size_skew": _Kind(
        "equal class proportions, sizes that grow with the client's number to the given power",
        _size_skew,
        {"power": _Parameter(1.0, 0.0, 10.0, False, "size of client c, from 0, in proportion to (c + 1)^power")},
        "SizePartitioner",
    ),
    "natural": _Kind(
        "the owners that the data name, such as the writers of femnist", _natural, {}, "NaturalIdPartitioner"
    ),
}

PARTITIONS: dict[str, str] = {name: kind.line for name, kind in _KINDS.items()}
"""The partitions, one line each."""


def partition_parameters(name: str) -> dict[str, float]:
    """What a partition takes, with the defaults. Raises `BadInput` for an unknown name."""
    if name not in _KINDS:
        raise unknown("data.partition", name, _KINDS)
    takes = _KINDS[name].takes
    return {key: int(of.default) if of.whole else of.default for key, of in takes.items()}


def partition_source(name: str) -> str:
    """Which partitioner of flwr-datasets it is, and whose. Raises KeyError for an unknown name."""
    return f"flwr-datasets, {_KINDS[name].source}"


def partition_table(name: str) -> list[tuple[str, float, str, str]]:
    """Key, default, meaning and what is allowed, of each parameter. Raises KeyError for an unknown name."""
    defaults = partition_parameters(name)
    return [(key, defaults[key], of.meaning, of.allowed) for key, of in _KINDS[name].takes.items()]
