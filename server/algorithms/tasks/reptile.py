"""Reptile: the initialisation follows the adapted parameters."""

from __future__ import annotations

from server.kit.algorithm import Algorithm, algorithm
from server.kit.meta import MetaOptions, MetaState, meta_algorithm


class Options(MetaOptions):
    """Options of `reptile`."""


@algorithm(
    "reptile",
    source="Nichol, Achiam & Schulman, On First-Order Meta-Learning Algorithms, 2018",
    options=Options,
    lower="local",
    confirmed="x - y_K",
)
def reptile(o: Options) -> Algorithm[MetaState]:
    """The way back from the adapted parameters, x - y_K; 1 round, no query set."""
    return meta_algorithm("reptile", o)
