"""AGILE: MAML with augmented tasks and with support sets that are chosen actively."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from server.algorithms.tasks import maml
from server.kit import options
from server.kit.algorithm import Algorithm, algorithm
from server.kit.meta import MetaState, meta_algorithm


class Options(maml.Options):
    """Options of `agile`."""

    labelled: Annotated[
        options.Count | None,
        Field(description="examples of a task's support set, the pool, that are chosen and labelled; default: all"),
    ] = None
    selection: Annotated[
        Literal["entropy", "random"],
        Field(description="how they are chosen: the highest predictive entropy at x under dropout, or at random"),
    ] = "entropy"
    passes: Annotated[options.Count, Field(description="predictions under dropout, whose mean has the entropy")] = 30
    dropout: Annotated[
        float, Field(gt=0, lt=1, description="probability by which such a prediction drops a feature of the head")
    ] = 0.5
    augmented: Annotated[
        float, Field(ge=0, le=1, description="probability by which a task of a round (of no evaluation) is augmented")
    ] = 0.5
    augmentations: Annotated[
        list[Literal["labels", "turns", "classes"]],
        Field(description="of such a task: labels permuted; classes of square images turned; classes mixed in pairs"),
    ] = ["labels", "turns", "classes"]  # noqa: RUF012  # pydantic copies it


@algorithm(
    "agile",
    source="task-augmented active meta-learning (AGILE)",
    options=Options,
    lower="local",
    needs="features",
    confirmed="augmented tasks; the support set chosen by uncertainty under dropout",
    reading="everything else: the choice at x in one go, dropout of the head's features, how tasks are augmented",
)
def agile(o: Options) -> Algorithm[MetaState]:
    """MAML on partly augmented tasks, support sets chosen from a pool by dropout's entropy or at random; 1 round."""
    return meta_algorithm("agile", o)
