"""The peak memory of a client's meta-gradient, and how it grows with the inner steps."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from clients.methods import methods
from fedbilevel.errors import BadInput
from fedbilevel.problem import ClientData
from fedbilevel.problems.tasks.few_shot import FewShot
from fedbilevel.tasks import Tasks
from server.running.peak import meta_gradient_peak

DIM, TASKS, SIZE = 2000, 4, 8
STATE = DIM * TASKS * SIZE
"""Bytes of one array [B, d]."""
# The arrays [B, d] that a method keeps per inner step (0: its memory is flat), its options, the steps measured.
GROWTH = {
    "maml": (1, {}, (10, 100, 1000)),
    "maml, last 10": (0, {"truncation": 10}, (10, 100, 1000)),
    "a-maml": (2, {}, (10, 1000)),
    "a-maml, euler": (1, {"solver": "euler"}, (10, 100, 1000)),
    "a-maml, midpoint": (2, {"solver": "midpoint"}, (10, 100, 300)),
    "a-maml, backward": (0, {"adjoint": "backward", "solver": "euler"}, (10, 1000)),
}
FLAT = ("fomaml", "reptile", "imaml", "ibaml", "memfbo", "bome")
WITHOUT_STEPS = {"agile", "comln", "r2d2", "ntk-maml", "kernel-maml", "stochastic-bilevel"}
"""Those that have no inner steps, or need labels or a softmax head."""
CASES = GROWTH | {name: (0, {}, (10, 1000)) for name in methods() if name in FLAT}


class Diagonal:
    """L(y) = f(y) = 1/2 sum_j D_j (y_j - a_j)^2, large and cheap."""

    draws, task_sizes, kind = 1, (1, 1), None

    def __init__(self) -> None:
        rows = [torch.arange(4.0, dtype=torch.float64)]
        self.clients = ClientData(rows, rows)

    def initial(self, generator):
        x = torch.randn(DIM, generator=generator, dtype=torch.float64)
        return x, x.clone()

    def tasks(self, held, draws):
        a = torch.from_numpy(draws.reshape(-1, 1, 1)).expand(-1, 1, DIM).contiguous()
        return Tasks(a, a + 1)

    def lower(self, x, y, examples):
        r = y - examples
        return 0.5 * (torch.linspace(0.2, 1, DIM, dtype=y.dtype) * r * r).sum(-1)

    upper = lower


def test_every_method_is_measured():
    ours = {name for name in methods() if ":" not in name}  # other tests may have entered files of users
    assert {name.split(",")[0] for name in CASES} | WITHOUT_STEPS >= ours


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(CASES))
def test_memory_against_inner_steps(case):
    arrays, options, steps = CASES[case]
    name, *_ = case.split(",")
    problem = Diagonal()
    with pytest.warns(UserWarning, match="adjoint") if "backward" in case else nullcontext():
        peaks = [meta_gradient_peak(problem, name, {"local_steps": k, "lower_step": 1e-3, **options}) for k in steps]
    if arrays == 0:
        assert peaks[-1] <= 1.1 * peaks[0]
        return
    for k, peak in zip(steps[1:], peaks[1:], strict=True):
        assert (peak - peaks[0]) / ((k - steps[0]) * STATE) == pytest.approx(arrays, abs=0.02)


def test_comln_is_flat_in_the_horizon():
    problem = FewShot(ways=3, shots=2, side=4, network="mlp", hidden=[4], activation="tanh")
    peaks = [meta_gradient_peak(problem, "comln", {"local_steps": k, "lower_step": 0.1}) for k in (10, 1000)]
    assert peaks[1] <= 1.1 * peaks[0]


def test_what_has_no_method_is_refused():
    problem = Diagonal()
    with pytest.raises(BadInput, match=r"algorithm: got 'fednest'; allowed: .*maml"):
        meta_gradient_peak(problem, "fednest", {})
    with pytest.raises(BadInput, match="softmax head"):
        meta_gradient_peak(problem, "comln", {})
