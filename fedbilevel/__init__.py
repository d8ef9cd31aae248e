"""fedbilevel: a simulator of federated bilevel optimisation.

>>> from fedbilevel import simulate
>>> result = simulate("quadratic", "aggitd", iterations=3, seed=0)
>>> result.history[-1]["round"]
36
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedbilevel.errors import BadInput, RunFailed
    from fedbilevel.problem import ClientData, Problem
    from server.running.experiment import Observer
    from server.running.load import load
    from server.running.simulation import simulate

__all__ = ["BadInput", "ClientData", "Observer", "Problem", "RunFailed", "load", "simulate"]
__version__ = "0.1.0"

_HOMES = {
    "BadInput": "fedbilevel.errors",
    "ClientData": "fedbilevel.problem",
    "Observer": "server.running.experiment",
    "Problem": "fedbilevel.problem",
    "RunFailed": "fedbilevel.errors",
    "load": "server.running.load",
    "simulate": "server.running.simulation",
}


def __getattr__(name: str) -> Any:
    """The public names, each imported when it is asked for: torch takes a second, and `simulate` lives with the server.

    Raises ImportError, naming the file, where a file of the user's stands in the place of one of our packages.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'fedbilevel' has no attribute {name!r}")
    if _HOMES[name].startswith("server."):
        from fedbilevel.packages import see_that_they_are_ours

        see_that_they_are_ours()
    return getattr(importlib.import_module(_HOMES[name]), name)
