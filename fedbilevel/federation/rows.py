"""From each client's own answer to one vector per output: lies, wires, noise, and the rule that withstands them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel import randomness
from fedbilevel.conditions.attacks import Byzantine, attacked
from fedbilevel.conditions.compression import compressed
from fedbilevel.conditions.privacy import Privacy
from fedbilevel.conditions.tables import Conditions
from fedbilevel.errors import NobodyAnswered
from fedbilevel.federation.aggregation import Aggregation, per_output
from fedbilevel.federation.messages import Operation, Reply
from fedbilevel.robust.rules import aggregate


class RowAggregation:
    """Aggregates answers client by client, each output of an operation by itself, in float64.

    An answer is falsified if its client attacks, compressed, and clipped; answers that are not finite or of another
    shape than most are dropped where the rule is robust. Of an iterate all of that is done to its displacement from
    what was sent. A robust rule gives every client one vote, and so does privacy: weights p_i are not used. Reports,
    which are not communication, are p_i-weighted means whatever the rule. Of fewer answers than its f needs a rule
    withstands as many as it can; where it takes none at all (krum of two) the median stands in for it.

    dropped: answers so far that were dropped; last: where centred clipping starts, by output.
    """

    def __init__(
        self,
        aggregation: Aggregation,
        conditions: Conditions,
        byzantine: Byzantine | None,
        privacy: Privacy | None,
    ) -> None:
        self.aggregation, self.conditions, self.privacy = aggregation, conditions, privacy
        self.byzantine = byzantine
        self.dropped = 0
        self.dropped_where = ""
        self.last: dict[str, Tensor] = {}

    @property
    def needed(self) -> bool:
        """Whether every client's own answer is needed."""
        return self.conditions.apart(self.byzantine)

    def __call__(
        self,
        operations: Sequence[Operation],
        tensors: Mapping[str, Tensor],
        options: Mapping[str, Any],
        clients: NDArray[np.int64],
        replies: Sequence[Reply],
        iteration: int,
        round: int,
    ) -> list[tuple[Tensor, ...]]:
        """Per operation and output the aggregate, in the dtype of the vectors sent."""
        like = next(iter(tensors.values()))
        population, seed = self.aggregation.population, self.aggregation.seed
        lying = np.zeros(len(clients), np.bool_)
        if self.byzantine is not None:
            lying = np.isin(clients, self.byzantine.attackers(seed, len(population), iteration))
        found = []
        for k, operation in enumerate(operations):
            outputs = len(replies[0].sums[k])
            about, along = (per_output(each, outputs) for each in (operation.about, operation.along))
            means = []
            for j in range(outputs):
                rows = _joined([reply.sums[k][j] for reply in replies])
                if operation.report and j == outputs - 1:
                    means.append(self._mean(rows, clients, normalised=True).to(like.dtype))
                    continue
                start = about[j]
                if start is not None:
                    rows = rows - tensors[start].double()
                name = f"{operation.name}.{j}"
                mean = self._one(rows, lying, clients, round, name)
                if start is not None:
                    mean = mean + tensors[start].double()
                if along[j] is not None and self._weighs and self.aggregation.weighting == "unbiased":
                    mean = mean + self.aggregation.whole(operation, along[j], tensors, options, clients)
                means.append(mean.to(like.dtype))
            found.append(tuple(means))
        return found

    @property
    def _weighs(self) -> bool:
        """Whether the weights p_i are used."""
        return self.conditions.aggregation.polite and self.privacy is None

    def _one(self, rows: Tensor, lying: NDArray[np.bool_], clients: NDArray[np.int64], round: int, name: str) -> Tensor:
        """The aggregate of one output's rows [n, d]."""
        seed, channel, rule = self.aggregation.seed, self.conditions.channel, self.conditions.aggregation
        if self.byzantine is not None:
            rows = attacked(rows, lying, self.byzantine, seed, clients, round, name)
        rows = compressed(rows, channel.uplink, channel, seed, clients, round, name)
        if self.privacy is not None:
            return self.privacy.mean(rows, round, name)
        if rule.polite:
            return self._mean(rows, clients, normalised=self.aggregation.weighting == "normalised")
        finite = rows.isfinite().all(1)
        if not bool(finite.all()):
            rows = rows[finite]
            if not self.dropped:
                lost = len(finite) - len(rows)
                self.dropped_where = f"{lost} of {len(finite)} in operation {name.rpartition('.')[0]}, round {round}"
            self.dropped += len(finite) - len(rows)
        if not len(rows):
            raise NobodyAnswered(f"operation {name.rpartition('.')[0]}, round {round}: no answer is finite")
        order = None
        if rule.before == "bucketing":
            draw = randomness.generator(seed, randomness.SERVER, round, f"bucketing {name}")
            order = torch.from_numpy(draw.permutation(len(rows)))
        last = self.last.get(name) if rule.rule == "centred_clipping" else None
        most = rule.most(len(rows))
        mean = aggregate(
            rows,
            rule.rule if most >= 0 else "median",
            min(rule.byzantine, max(most, 0)),
            before=rule.before if most >= 0 else None,
            bucket=rule.bucket,
            radius=rule.radius,
            last=last if last is not None and last.shape == rows.shape[1:] else None,
            order=order,
        )
        if rule.rule == "centred_clipping":
            self.last[name] = mean
        return mean

    def _mean(self, rows: Tensor, clients: NDArray[np.int64], *, normalised: bool) -> Tensor:
        """`sum_S w_i u_i`, the weights those of a sampled set."""
        weights = self.aggregation.weights(clients, "normalised" if normalised else "unbiased")
        return torch.from_numpy(weights).to(rows.device) @ rows.double()


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The workers' rows one after another, in float64; those of another length than most are no numbers."""
    lengths = Counter[int]()
    for part in parts:
        lengths[part.shape[-1]] += len(part)
    [(length, _)] = lengths.most_common(1)
    fitting = [
        part.double() if part.shape[-1] == length else torch.full((len(part), length), torch.nan, dtype=torch.float64)
        for part in parts
    ]
    return fitting[0] if len(fitting) == 1 else torch.cat(fitting)
