"""MAML: the lower level is K gradient steps on each client's tasks, differentiated step by step."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.kit import options
from server.kit.algorithm import Algorithm, algorithm
from server.kit.meta import MetaOptions, MetaState, meta_algorithm


class Options(MetaOptions):
    """Options of `maml`."""

    truncation: Annotated[
        options.Count | None, Field(description="differentiate through the last so many inner steps; default: all")
    ] = None

    def kept(self) -> int:
        """The path: K states."""
        return self.local_steps


@algorithm(
    "maml",
    source="Finn, Abbeel & Levine, Model-Agnostic Meta-Learning, ICML 2017",
    options=Options,
    lower="local",
    confirmed="reverse mode through the inner steps",
    reading="truncation",
)
def maml(o: Options) -> Algorithm[MetaState]:
    """Reverse-mode differentiation through the K inner gradient steps; 1 round, memory O(K)."""
    return meta_algorithm("maml", o)
