"""Partitions held against counts made here, and against bad input."""

from __future__ import annotations

import contextlib
import io
import random
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedbilevel.data import PARTITIONS, partition
from fedbilevel.data.partitions import index_lists
from tests.datasets import CASES, LABELS, OWNERS, parts_of, refused


def test_every_partition_is_a_case() -> None:
    assert {name for name, _ in CASES} == set(PARTITIONS)


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_contract(name: str, parameters: dict[str, Any]) -> None:
    states = random.getstate(), np.random.get_state()[1].copy()
    parts = parts_of(name, **parameters)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert len(parts) == 20
    for part in parts:
        assert part.dtype == np.int64
        assert len(part) >= 2
        assert np.all(np.diff(part) > 0)
    every = np.concatenate(parts)
    assert len(np.unique(every)) == len(every)
    assert every.min() >= 0
    assert every.max() < len(LABELS)
    if name == "shards":  # drops what does not fill a shard
        shards = 20 * parameters.get("shards_per_client", 2)
        assert len(every) == len(LABELS) // shards * shards
    elif name != "natural":
        assert len(every) == len(LABELS)
    again, other = parts_of(name, **parameters), parts_of(name, seed=1, **parameters)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(parts, other, strict=True))


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for name, parameters in CASES:
        parts_of(name, **parameters)
    assert capfd.readouterr() == ("", "")


def distance(parts: list[NDArray[np.int64]], labels: NDArray[np.int64] = LABELS) -> float:
    """Mean total variation between a client's class shares and those of the whole."""
    whole = np.bincount(labels, minlength=10) / len(labels)
    shares = [np.bincount(labels[part], minlength=10) / len(part) for part in parts]
    return float(np.mean([np.abs(share - whole).sum() / 2 for share in shares]))


def test_iid_is_even_and_alike() -> None:
    parts = parts_of("iid", clients=7)
    assert sorted({len(part) for part in parts}) == [428, 429]
    assert distance(parts) < 0.1


def test_iid_cuts_as_flower_does() -> None:
    from datasets import Dataset as HuggingFaceDataset
    from flwr_datasets.partitioner import IidPartitioner, SizePartitioner

    theirs = IidPartitioner(7)
    theirs.dataset = HuggingFaceDataset.from_dict({"row": np.arange(100)})
    rows = [list(theirs.load_partition(client)["row"]) for client in range(7)]
    assert [
        part.tolist() for part in index_lists(SizePartitioner([len(row) for row in rows]), np.zeros(100, int))
    ] == rows
    sizes = sorted((len(part) for part in partition(np.zeros(100, int), name="iid", clients=7, seed=0)), reverse=True)
    assert sizes == [len(row) for row in rows]


@pytest.mark.parametrize("kind", ["dirichlet", "pathological", "shards", "size", "natural"])
def test_index_lists_are_those_of_the_public_interface(kind: str) -> None:
    """The private attribute that is read at once holds what `load_partition` gives client by client."""
    from datasets import Dataset as HuggingFaceDataset
    from flwr_datasets import partitioner as flower

    def make() -> Any:
        return {
            "dirichlet": lambda: flower.DirichletPartitioner(6, "label", 0.5, 2),
            "pathological": lambda: flower.PathologicalPartitioner(6, "label", 4, "first-deterministic"),
            "shards": lambda: flower.ShardPartitioner(6, "label", 3),
            "size": lambda: flower.SizePartitioner([500] * 6),
            "natural": lambda: flower.NaturalIdPartitioner("label"),
        }[kind]()

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        public = make()
        public.dataset = HuggingFaceDataset.from_dict({"label": LABELS, "row": np.arange(3000)})
        public.load_partition(0)
        rows = [list(public.load_partition(client)["row"]) for client in range(public.num_partitions)]
    assert [part.tolist() for part in index_lists(make(), LABELS)] == rows


def test_dirichlet_grows_more_uneven_as_alpha_falls() -> None:
    """Ten equal classes: a client's shares spread with variance p (1 - p) / (1 + 10 alpha) at about equal sizes."""
    distances = [
        np.mean([distance(parts_of("dirichlet", clients=10, seed=seed, alpha=alpha)) for seed in range(5)])
        for alpha in (100, 1, 0.3, 0.1)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 0.12 < 0.3 < distances[1] < distances[3]
    assert distances[3] > 0.6


def test_dirichlet_keeps_its_least_size() -> None:
    assert min(map(len, parts_of("dirichlet", alpha=1.0, min_size=60))) >= 60


@pytest.mark.parametrize("alpha", [1e-3, 1e6])
def test_dirichlet_at_its_limits(alpha: float) -> None:
    parts = parts_of("dirichlet", clients=2, seed=3, alpha=alpha)
    assert len(np.concatenate(parts)) == 3000
    assert (distance(parts) < 0.01) == (alpha > 1)


@pytest.mark.parametrize(("clients", "classes"), [(10, 1), (10, 3), (25, 2), (3, 10)])
def test_pathological_counts(clients: int, classes: int) -> None:
    parts = parts_of("pathological", clients=clients, classes_per_client=classes)
    held = np.array([np.bincount(LABELS[part], minlength=10) for part in parts])
    assert np.all((held > 0).sum(axis=1) == classes)
    # The clients that share a class share it evenly, and all of it.
    assert np.array_equal(held.sum(axis=0), np.bincount(LABELS))
    for column in held.T:
        assert np.ptp(column[column > 0]) <= 1


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_counts(shards: int) -> None:
    """Examples sorted by class and cut into equal shards: each shard holds one class, or two neighbours at a border."""
    labels = np.repeat(np.arange(10), 300)[np.random.default_rng(0).permutation(3000)]
    parts = partition(labels, name="shards", clients=10, seed=0, shards_per_client=shards)
    held = np.array([np.bincount(labels[part], minlength=10) for part in parts])
    assert np.all(held.sum(axis=1) == 300)
    assert np.all(held % (300 // shards) == 0)  # 300 examples per class: no shard crosses a border
    assert np.all((held > 0).sum(axis=1) <= shards)


def test_size_skew_follows_the_power() -> None:
    for power in (0.0, 1.0, 2.0):
        sizes = np.array([len(part) for part in parts_of("size_skew", clients=20, power=power)])
        wanted = np.arange(1, 21) ** power
        wanted = 2 + (3000 - 40) * wanted / wanted.sum()
        assert np.all(np.abs(sizes - wanted)[:-1] < 1)
        assert sizes.sum() == 3000
    big = parts_of("size_skew", clients=20, power=1.0)[10:]
    assert distance(big) < 0.15  # sizes differ, classes do not


def test_size_skew_leaves_every_client_two() -> None:
    assert min(map(len, parts_of("size_skew", clients=1500, power=10))) == 2


@pytest.mark.parametrize("names", [OWNERS, np.char.add("writer ", OWNERS.astype(str))])
def test_natural_clients_are_owners(names: NDArray[Any]) -> None:
    everyone = partition(LABELS, name="natural", clients=60, seed=0, owners=names)
    for owner, part in zip(np.unique(names), everyone, strict=True):
        assert np.array_equal(part, np.flatnonzero(names == owner))
    some = partition(LABELS, name="natural", clients=12, seed=0, owners=names)
    assert all(any(np.array_equal(part, other) for other in everyone) for part in some)


def test_natural_passes_over_owners_of_one_example() -> None:
    owners = np.array([3, 1, 1, 2, 2, 2])
    parts = partition(np.zeros(6, int), name="natural", clients=2, seed=0, owners=owners)
    assert [part.tolist() for part in parts] == [[1, 2], [3, 4, 5]]
    refused(
        lambda: partition(np.zeros(6, int), name="natural", clients=3, seed=0, owners=owners),
        "data.clients",
        "at most 2",
    )


@pytest.mark.parametrize(
    ("name", "changed", "key", "part"),
    [
        ("dirichlett", {}, "data.partition", "did you mean 'dirichlet'?"),
        ("natural", {"owners": None}, "data.partition", "these data name no owners"),
        ("iid", {"alpha": 0.3}, "data.alpha", "partition iid takes no parameters"),
        ("dirichlet", {"shards_per_client": 2}, "data.shards_per_client", "dirichlet takes alpha, min_size"),
        ("iid", {"clients": 0}, "data.clients", "an integer from 1"),
        ("iid", {"clients": 2.0}, "data.clients", "an integer from 1"),
        ("iid", {"clients": True}, "data.clients", "an integer from 1"),
        ("iid", {"clients": 1501}, "data.clients", "at most 1500"),
        ("natural", {"clients": 61}, "data.clients", "at most 60"),
        ("iid", {"seed": -1}, "seed", "an integer from 0"),
        ("iid", {"seed": 2**64}, "seed", "an integer from 0"),
        ("dirichlet", {"alpha": 0}, "data.alpha", "a number from 0.001"),
        ("dirichlet", {"alpha": float("nan")}, "data.alpha", "a number from 0.001"),
        ("dirichlet", {"alpha": float("inf")}, "data.alpha", "a number from 0.001"),
        ("dirichlet", {"alpha": "0.3"}, "data.alpha", "a number from 0.001"),
        ("dirichlet", {"alpha": [0.3]}, "data.alpha", "a number from 0.001"),
        ("dirichlet", {"min_size": 1}, "data.min_size", "an integer from 2"),
        ("dirichlet", {"min_size": 151}, "data.min_size", "at most 150"),
        ("dirichlet", {"alpha": 0.01, "clients": 200}, "data.alpha", "in eleven draws"),
        ("pathological", {"classes_per_client": 0}, "data.classes_per_client", "an integer from 1"),
        ("pathological", {"classes_per_client": 1.5}, "data.classes_per_client", "an integer from 1"),
        ("pathological", {"classes_per_client": 11}, "data.classes_per_client", "at most 10"),
        (
            "pathological",
            {"classes_per_client": 2, "clients": 3},
            "data.classes_per_client",
            "no one holds the classes",
        ),
        ("pathological", {"classes_per_client": 10, "clients": 400}, "data.clients", "more clients share a class"),
        ("pathological", {"classes_per_client": 1, "clients": 1500}, "data.classes_per_client", "has 1 examples"),
        ("shards", {"shards_per_client": -1}, "data.shards_per_client", "an integer from 1"),
        ("shards", {"shards_per_client": 151}, "data.shards_per_client", "at most 150"),
        ("size_skew", {"power": -1}, "data.power", "a number from 0"),
        ("size_skew", {"power": 11}, "data.power", "a number from 0.0 to 10"),
    ],
)
def test_what_a_partition_refuses(name: str, changed: dict[str, Any], key: str, part: str) -> None:
    arguments: dict[str, Any] = {"name": name, "clients": 20, "seed": 0, "owners": OWNERS, **changed}
    refused(lambda: partition(LABELS, **arguments), key, part)


def test_the_limits_that_errors_name_are_right() -> None:
    assert len(parts_of("iid", clients=1500)) == 1500
    assert len(parts_of("shards", shards_per_client=150)) == 20
    assert len(parts_of("natural", clients=60)) == 60


def test_hundred_clients_over_sixty_thousand_labels_are_quick() -> None:
    import time

    labels = np.random.default_rng(0).integers(0, 10, 60_000)
    parts_of("dirichlet")  # the imports
    start = time.process_time()
    for name in ("iid", "dirichlet", "pathological", "shards", "size_skew"):
        assert len(partition(labels, name=name, clients=100, seed=0)) == 100
    assert time.process_time() - start < 5
