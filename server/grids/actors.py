"""Pinned Ray actors, one per block of clients: started, given their clients, asked, and replaced if they die."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from fedbilevel.errors import BadInput, RunFailed
from fedbilevel.machine.processes import MOST_PATIENCE, MOST_THREADS, MOST_WORKERS
from fedbilevel.problem import Problem
from server.grids.cluster.room import has_room, leased, room
from server.grids.exchange import block_ends
from server.grids.parcels import pack, restricted
from server.grids.worker import Worker

LIVES = 3
"""So many actors in a row may die of the same question."""

_DEATHS = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError)
_DEATH_OR_ERROR = (*_DEATHS, ray.exceptions.RayTaskError)


@dataclass(frozen=True)
class Shares:
    """How many actors there are, and what each of them uses and reserves.

    actors: default one per CPU of the cluster; threads: of torch in an actor, default CPUs / actors, at least 1; cpus,
    gpus: what an actor reserves of a machine in Ray's books; patience: seconds in which it has to be ready.

    Raises BadInput for what is out of range.
    """

    actors: int | None = None
    threads: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    patience: float = 60.0

    def __post_init__(self) -> None:
        for name, count, most in (("workers", self.actors, MOST_WORKERS), ("threads", self.threads, MOST_THREADS)):
            if count is not None and (not isinstance(count, int) or not 1 <= count <= most):
                raise BadInput(f"engine.{name}", count, f"an integer of at least 1 and at most {most}")
        for name, value, largest in (
            ("cpus", self.cpus, MOST_THREADS),
            ("gpus", self.gpus, MOST_THREADS),
            ("patience", self.patience, MOST_PATIENCE),
        ):
            if not 0 <= value <= largest:
                raise BadInput(f"engine.{name}", value, f"a number of at least 0 and at most {largest:g}")

    @property
    def needed(self) -> int:
        """The CPUs that a Ray of one's own must have at least."""
        return math.ceil((self.actors or 1) * self.cpus)

    def options(self) -> dict[str, Any]:
        """Return Ray's words for what an actor reserves, and that actors spread over the machines."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": "SPREAD"}


@dataclass
class Call:
    """A question on its way: to whom, what was asked, which actor was asked last, and what will hold its answer."""

    partition: int
    arguments: tuple[Any, ...]
    actor: Any = None
    answer: Any = None
    deaths: int = 0


class Actors:
    """Actors in numbered places; Ray must be initialised. `started` counts them, those that replaced others included.

    Raises RunFailed if an actor is not ready within `shares.patience` seconds.
    """

    def __init__(self, shares: Shares, run_id: int, node_ids: Sequence[int]) -> None:
        self.shares, self._run_id, self._node_ids = shares, run_id, node_ids
        self.started = 0
        self._actors: dict[int, Any] = {}
        self._held: tuple[str, Problem] | None = None
        processors = int(ray.cluster_resources().get("CPU", 1))
        self._threads = shares.threads or max(1, processors // len(node_ids))
        try:
            self._start(range(len(node_ids)), "")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors.values():
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self._actors.clear()

    def pids(self) -> list[int]:
        """Return the process of the actor in each place."""
        pids: list[int] = ray.get([self._actors[j].pid.remote() for j in sorted(self._actors)])
        return pids

    # ---- what they hold ----

    def hold(self, problem: Problem) -> str:
        """Give every actor its clients of this problem, unless it has them; returns the problem's name in setups.

        Raises BadInput for a problem that cannot be pickled, RunFailed if a worker cannot unpack it.
        """
        if self._held is None or self._held[1] is not problem:
            self._held = (uuid.uuid4().hex, problem)
            self._give(range(len(self._node_ids)))
        return self._held[0]

    def _give(self, places: Iterable[int]) -> None:
        if self._held is None:
            return
        name, problem = self._held
        ends = [0, *block_ends(len(problem.clients), len(self._node_ids)).tolist()]
        taken = {}
        for j in places:
            parcel = ray.put(pack(restricted(problem, ends[j], ends[j + 1])))
            taken[j] = self._actors[j].take.remote(name, parcel)
        for j, done in taken.items():
            try:
                ray.get(done)
            except _DEATHS:
                continue  # the next question finds it dead, and it is replaced
            except ray.exceptions.RayTaskError as error:
                raise RunFailed(f"worker {j} cannot take its clients: {reason(error)}") from None

    # ---- life and death ----

    def _start(self, places: Iterable[int], why: str) -> None:
        """Put new actors in these places and wait until they are ready.

        One that dies before is tried again: Ray may have put it on a machine that it did not know to be dead.
        """
        count, deadline = len(self._node_ids), time.monotonic() + self.shares.patience
        kind = ray.remote(Worker).options(**self.shares.options())
        coming: dict[Any, int] = {}
        missing = list(places)
        while missing or coming:
            for j in missing:
                self._actors[j] = kind.remote(self._run_id, self._node_ids[j], j, count, self._threads)
                coming[self._actors[j].pid.remote()] = j
            missing = []
            done, _ = ray.wait(list(coming), timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                raise RunFailed(f"{why}{self._late([self._actors[j] for j in coming.values()], count)}")
            for answer in done:
                j = coming.pop(answer)
                try:
                    ray.get(answer)
                    self.started += 1
                except _DEATH_OR_ERROR as error:
                    refused = isinstance(error, ray.exceptions.RayTaskError) or "creation task" in str(error)
                    if refused or time.monotonic() > deadline:
                        raise RunFailed(f"{why}worker {j} of {count} does not start: {reason(error)}") from None
                    missing.append(j)
                    time.sleep(0.2)

    def _late(self, actors: Sequence[Any], count: int) -> str:
        """Say why these actors are not ready: there is no room for them, or they are slow to start."""
        shares, without = self.shares, len(actors) - leased(actors)
        if has_room(count, without, shares.cpus, shares.gpus):
            return (
                f"slow start: {len(actors)} of {count} workers have room and were not ready within"
                f" {shares.patience:g} s; engine.patience sets how long to wait"
            )
        return (
            f"no capacity for {without} of {count} workers: within {shares.patience:g} s Ray has"
            f" found no room of {room(shares.cpus, shares.gpus)} for each; add machines, or ask for fewer actors"
        )

    def _replace(self, lost: dict[int, Exception]) -> None:
        """Put new actors in the places of those that have died of what is said."""
        for j in lost:
            with contextlib.suppress(Exception):
                ray.kill(self._actors[j])
        first = next(iter(lost))
        self._start(lost, f"worker {first} of {len(self._node_ids)} has died ({reason(lost[first])}); ")
        self._give(lost)

    # ---- questions and answers ----

    def ask(self, partition: int, *arguments: Any) -> Call:
        """Let the actor in this place begin to answer; references among the arguments arrive as what they refer to."""
        call = Call(partition, arguments)
        self._submit(call)
        return call

    def _submit(self, call: Call) -> None:
        call.actor = self._actors[call.partition]
        call.answer = call.actor.answer.remote(*call.arguments)

    def answers(self, calls: Sequence[Call], timeout: float | None = None) -> list[bytes | Exception | None]:
        """Wait for the answers: bytes, or what the worker raised, or None where `timeout` seconds were not enough.

        An actor that has died is replaced and asked again. Raises RunFailed if that cannot be done.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        found: dict[int, bytes | Exception | None] = {}
        while len(found) < len(calls):
            lost: dict[int, Exception] = {}
            again = []
            for position, call in enumerate(calls):
                if position in found:
                    continue
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                try:
                    found[position] = ray.get(call.answer, timeout=left)
                except ray.exceptions.GetTimeoutError:
                    found[position] = None
                except ray.exceptions.RayTaskError as error:
                    found[position] = error
                except _DEATHS as error:
                    again.append(call)
                    if call.actor is self._actors.get(call.partition):  # else it was replaced in the meantime
                        call.deaths += 1
                        lost[call.partition] = error
                    if call.deaths >= LIVES:
                        place = f"worker {call.partition} of {len(self._node_ids)}"
                        raise RunFailed(f"{place} has died {LIVES} times in a row: {reason(error)}") from None
            if lost:
                self._replace(lost)
            for call in again:
                self._submit(call)
        return [found[position] for position in range(len(calls))]


def reason(error: Exception) -> str:
    """What Ray says of a death or of a worker's exception, in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return " ".join(f"{type(cause).__name__}: {cause}".split())
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = next((line for line in lines if line.startswith("The actor is dead because")), lines[-1])
    return " ".join(said.split())[:300]


def chosen(shares: Shares) -> int:
    """Return how many actors there will be in the cluster that Ray is connected to."""
    return shares.actors or max(1, int(ray.cluster_resources().get("CPU", 1)))
