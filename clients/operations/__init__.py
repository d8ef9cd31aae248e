"""What a client computes in a round: registered pure functions that travel by name.

An operation reads vectors by the names of its positional parameters and options by those of its keyword parameters. It
is written for a cohort (`clients.cohort.Cohort`): vectors of the clients' own are rows.
"""

from clients.operations import adaptation, first_order, local, minimax, oracles, sampling, single_loop
from clients.operations.registry import OPERATIONS, Operation

__all__ = [
    "OPERATIONS",
    "Operation",
    "adaptation",
    "first_order",
    "local",
    "minimax",
    "oracles",
    "sampling",
    "single_loop",
]
