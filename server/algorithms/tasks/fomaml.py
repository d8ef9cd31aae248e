"""First-order MAML: the second derivatives of MAML are left out."""

from __future__ import annotations

from server.kit.algorithm import Algorithm, algorithm
from server.kit.meta import MetaOptions, MetaState, meta_algorithm


class Options(MetaOptions):
    """Options of `fomaml`."""


@algorithm(
    "fomaml",
    source="Finn, Abbeel & Levine, Model-Agnostic Meta-Learning, ICML 2017",
    options=Options,
    lower="local",
    confirmed="the gradient at the adapted parameters",
)
def fomaml(o: Options) -> Algorithm[MetaState]:
    """First-order MAML: the gradient at the adapted parameters; 1 round."""
    return meta_algorithm("fomaml", o)
