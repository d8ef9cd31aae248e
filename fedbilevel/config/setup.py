"""A setup: what a worker has to know, as text, to build its side of one run."""

from __future__ import annotations

import functools
import json
from typing import Any

import torch

from fedbilevel.config.build import build, defaults, needs_data, takes_seed
from fedbilevel.config.tables import Batch, Config, DataTable, ProblemTable
from fedbilevel.data import FederatedData, federate, partition_parameters
from fedbilevel.data.poison import flipped_share, poisoned
from fedbilevel.errors import BadInput
from fedbilevel.federation.systems import BatchSize
from fedbilevel.machine.device import Device
from fedbilevel.problem import Problem
from fedbilevel.strict import Strict
from fedbilevel.user_files import UserFile, file_at


class Setup(Strict):
    """Problem, data, precision, device, seed and minibatch sizes of one run; `run` tells runs of one session apart.

    files: the user's own with what clients compute in it; the problem's are read where the problem is built.
    flipped: the share of clients whose labels are flipped, by an attack on the data.
    """

    run: str
    problem_table: ProblemTable
    data: DataTable | None
    dtype: str
    device: Device = "auto"
    seed: int
    batch: Batch
    gradient_batch: Batch | None
    files: tuple[UserFile, ...] = ()
    flipped: float = 0.0

    @classmethod
    def of(cls, config: Config, label: str, seed: int, files: tuple[UserFile, ...] = ()) -> Setup:
        """Return the setup of one algorithm and seed of a config."""
        run = config.run
        return cls(
            run=f"{label} {seed}",
            problem_table=config.problem,
            data=config.data,
            dtype=run.dtype,
            device=run.device,
            seed=seed,
            batch=run.batch,
            gradient_batch=run.gradient_batch,
            files=files,
            flipped=flipped_share(config.of(label).systems.byzantine),
        )

    @property
    def batch_size(self) -> BatchSize:
        """Minibatch size of local steps, None for the full batch."""
        return None if self.batch == "full" else self.batch

    @property
    def gradient_batch_size(self) -> BatchSize:
        """Minibatch size of every other derivative, None for the full batch."""
        chosen = self.batch if self.gradient_batch is None else self.gradient_batch
        return None if chosen == "full" else chosen

    def problem(self) -> Problem:
        """Build the problem; the latest two are kept, as long as the user's files are the same. Raises BadInput."""
        data, seed, own, content = self._drawn()
        tables = {"problem": self.problem_table.model_dump(), "data": data and data.model_dump(exclude={"seed"})}
        return _problem(
            json.dumps(tables), seed, own, self.dtype, content, self.flipped, self.seed if self.flipped else 0
        )

    def recipe(self) -> dict[str, Any]:
        """What the problem is made of, with everything written out; the same for every run of the same problem.

        Raises BadInput as `problem` does, but for what only the building tells.
        """
        data, seed, own, content = self._drawn()
        problem = defaults(self.problem_table.name) | self.problem_table.model_dump()
        spread = data and partition_parameters(data.partition) | data.model_dump() | {"seed": seed}
        flipped = [self.flipped, self.seed] if self.flipped else None
        drawn = {"seed": own, "flipped": flipped, "files": content, "run": {"dtype": self.dtype}}
        return dict(json.loads(json.dumps({"problem": problem, "data": spread, **drawn})))

    def _drawn(self) -> tuple[DataTable | None, int, int, str]:
        """The data table, the seed of its partition, that of the problem (0 where there is none), and its files."""
        name = self.problem_table.name
        data = (self.data or DataTable()) if needs_data(name) else None
        if data is None and self.data is not None:
            raise BadInput("data", "a table", f"no table [data]: problem {name} takes no data set")
        seed = self.seed if data is None or data.seed is None else data.seed
        own = self.seed if takes_seed(name, self.problem_table.parameters) else 0
        files = self.problem_table.files.items()
        content = " ".join(file_at(file, f"problem.{key}").module_name for key, file in files)
        return data, seed if data else 0, own, content


@functools.lru_cache(maxsize=2)
def _problem(
    tables: str, data_seed: int, seed: int, dtype: str, content: str, flipped: float, attackers: int
) -> Problem:
    """content: names what the problem's files hold, so that a file that was edited is another problem; flipped: the
    share of clients whose labels are, attackers: the seed that draws them.
    """
    parsed = json.loads(tables)
    table = ProblemTable.model_validate(parsed["problem"])

    def data() -> FederatedData:
        chosen = DataTable.model_validate(parsed["data"])
        return federate(
            chosen.name,
            clients=chosen.clients,
            partition_name=chosen.partition,
            parameters=chosen.parameters,
            validation=chosen.validation,
            weights=chosen.weights,
            seed=data_seed,
        )

    problem = build(table.name, table.parameters, data=data, dtype=getattr(torch, dtype), seed=seed)
    return poisoned(problem, flipped, attackers) if flipped else problem
