"""Going on from a checkpoint: the state, every total of the ledger, and the time spent, against counts made here."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clients.node import Setting
from fedbilevel.config.tables import RunTable
from fedbilevel.errors import BadInput
from fedbilevel.federation.ledger import Ledger
from fedbilevel.federation.systems import Network, Systems
from fedbilevel.problems import Quadratic
from server.grids.engines import in_process
from server.kit.algorithm import find
from server.running import run as loop
from server.running.checkpoints import Checkpoint, Checkpoints
from server.running.run import Result, Run, initial, run_one

M, DX, DY, END = 5, 3, 4, 6
PROBLEM = Quadratic(clients=M, dim_x=DX, dim_y=DY, examples=3)
TABLE = RunTable(iterations=END)
SYSTEMS = Systems(network=Network(latency_ms=125.0, downlink_mbps=1e12, uplink_mbps=1e12, examples_per_second=1e12))
"""A round takes a quarter of a second, and all else no time that shows."""


def run(label: str = "f2sa", **changed: Any) -> Run:
    entry = find(label)
    options = {"lower_rounds": 1} if label == "f2sa" else {}
    return replace(Run(label, 0, entry.factory(entry.parse(options)), TABLE, SYSTEMS), **changed)


def gone(own: Run, **settings: Any) -> Result:
    return run_one(own, PROBLEM, in_process(PROBLEM, Setting()), **settings)


@pytest.fixture
def _a_second_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by one second whenever it is looked at, which an iteration does when it begins and ends."""
    ticks = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))


@pytest.mark.usefixtures("_a_second_a_look")
@pytest.mark.parametrize("at", [1, 3, 5])
def test_totals_and_times_go_on_where_they_were(tmp_path: Path, at: int) -> None:
    """Two rounds an iteration: x, y and z (at first it is y) down, dy and dz up; then the new y and z down, h up."""
    kept: list[Checkpoint] = []
    whole = gone(run(), keep=kept.append)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save("f2sa", kept[at])
    first = run().algorithm.init(*initial(PROBLEM, 0))
    loaded = checkpoints.load("f2sa", first)
    assert loaded is not None
    assert loaded.iteration == at
    later = gone(run(), resume=loaded)
    for result in (whole, later):
        assert result.communication == {
            "rounds": 2 * END,
            "messages": 2 * M * 2 * END,
            "vectors_down": M * (5 * END - 1),
            "vectors_up": M * 3 * END,
            "downlink_bytes": 8 * M * (DX * END + DY * (4 * END - 1)),
            "uplink_bytes": 8 * M * END * (2 * DY + DX),
            "simulated_seconds": pytest.approx(0.25 * 2 * END, rel=1e-6),
        }
        # of three examples a client, twice an iteration: g at y and at z, and f
        assert result.history[-1]["gradient_evaluations"] == END * 2 * M * 3 * (2 + 1)
        assert result.history[-1]["wall_seconds"] == END
        assert result.history[-1]["simulated_seconds"] == pytest.approx(0.25 * 2 * END, rel=1e-6)
    assert [row["iteration"] for row in later.history] == list(range(at + 1, END + 1))
    assert [row["wall_seconds"] for row in later.history] == list(range(at + 1, END + 1))
    assert later.history == whole.history[at + 1 :]
    assert torch.equal(later.x, whole.x)
    assert torch.equal(later.y, whole.y)


def test_every_total_of_the_ledger_is_kept(tmp_path: Path) -> None:
    """Whatever they are: no two of these are alike."""
    totals = {each.name: type(each.default)(1000 + k) for k, each in enumerate(fields(Ledger))}
    first = run().algorithm.init(*initial(PROBLEM, 0))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save("a run", Checkpoint(first, 3, 17.5, totals))
    loaded = checkpoints.load("a run", first)
    assert loaded is not None
    assert (loaded.iteration, loaded.seconds, dict(loaded.ledger)) == (3, 17.5, totals)
    assert {name: type(value) for name, value in loaded.ledger.items()} == {k: type(v) for k, v in totals.items()}


@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize(
    "change",
    [lambda t: t.float(), lambda t: t[:-1], lambda t: t.tolist()],
    ids=["dtype", "shape", "no tensor"],
)
def test_a_checkpoint_of_another_kind_of_run_is_refused(tmp_path: Path, name: str, change: Any) -> None:
    first = run().algorithm.init(*initial(PROBLEM, 0))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save("a run", Checkpoint(replace(first, **{name: change(getattr(first, name))}), 1, 0.0, {}))
    with pytest.raises(
        BadInput, match=rf"got .*a run\.pt.*\({name} (has another shape|is of the type list).*delete it to"
    ):
        checkpoints.load("a run", first)


def test_a_checkpoint_that_lacks_a_total_or_holds_more_than_the_state_is_refused(tmp_path: Path) -> None:
    first = run().algorithm.init(*initial(PROBLEM, 0))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save("a run", Checkpoint(first, 1, 0.0, {"rounds": 3}))
    with pytest.raises(BadInput, match=r"KeyError: 'messages'"):
        checkpoints.load("a run", first)
    checkpoints.save("a run", Checkpoint(first, 1, 0.0, Ledger().totals()))
    with pytest.raises(BadInput, match=r"unexpected keyword argument"):
        checkpoints.load("a run", run("joint").algorithm.init(*initial(PROBLEM, 0)))
    assert checkpoints.load("another run", first) is None


def test_what_clients_keep_comes_back_by_its_client_and_in_the_dtype_of_the_run(tmp_path: Path) -> None:
    first = run("br-fedbi").algorithm.init(*initial(PROBLEM, 0))
    kept = {i: torch.full((DX + 2 * DY,), float(i), dtype=torch.float64) for i in (4, 1)}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save("a run", Checkpoint(replace(first, kept=kept), 1, 0.0, Ledger().totals()))
    loaded = checkpoints.load("a run", first)
    assert loaded is not None
    back = vars(loaded.state)["kept"]
    assert {i: row.tolist() for i, row in back.items()} == {i: row.tolist() for i, row in kept.items()}
    narrow = replace(first, kept={**kept, 1: kept[1].float()})
    checkpoints.save("a run", Checkpoint(narrow, 1, 0.0, Ledger().totals()))
    with pytest.raises(BadInput, match=r"kept has another dtype.*delete it to"):
        checkpoints.load("a run", first)
