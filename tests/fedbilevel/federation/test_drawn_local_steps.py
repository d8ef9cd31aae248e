"""Local steps that are drawn per client, or counted in epochs."""

from __future__ import annotations

import numpy as np

from fedbilevel.federation.systems import Between, Epochs, local_steps


def test_drawn_local_steps_are_uniform_and_the_clients_own() -> None:
    clients = np.arange(6000)
    sizes = np.ones(6000, dtype=np.int64)
    drawn = local_steps(Between(low=2, high=4), 1, clients, sizes, None)
    counts = np.bincount(drawn, minlength=6)
    assert counts[:2].sum() == 0
    assert counts[5:].sum() == 0
    assert np.all(np.abs(counts[2:5] - 2000) < 4 * np.sqrt(6000 * 2 / 9))
    some = clients[[5, 999, 17]]
    assert np.array_equal(local_steps(Between(low=2, high=4), 1, some, sizes[:3], None), drawn[some])
    assert not np.array_equal(local_steps(Between(low=2, high=4), 2, clients, sizes, None), drawn)


def test_epochs_count_minibatches_of_the_own_examples() -> None:
    sizes = np.array([1, 4, 5, 9])
    assert local_steps(Epochs(epochs=2), 0, np.arange(4), sizes, 4).tolist() == [2, 2, 4, 6]
