"""fedbilevel: a simulator of federated bilevel optimisation.

>>> from fedbilevel import simulate
>>> result = simulate("quadratic", "aggitd", iterations=3, seed=0)
>>> result.history[-1]["round"]
36
"""

from typing import TYPE_CHECKING, Any

from fedbilevel.errors import BadInput, RunFailed
from fedbilevel.problem import ClientData, Problem

if TYPE_CHECKING:
    from server.simulation import simulate

__all__ = ["BadInput", "ClientData", "Problem", "RunFailed", "simulate"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`simulate` lives with the server, which this package does not import before it is asked to."""
    if name == "simulate":
        from server.simulation import simulate

        return simulate
    raise AttributeError(f"module 'fedbilevel' has no attribute {name!r}")
