"""Networks by name, as the parameter `network` of a problem holds them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedbilevel.errors import BadInput, unknown
from fedbilevel.machine.memory import require
from fedbilevel.problems.networks.convolutions import Convolutions
from fedbilevel.problems.networks.layers import Activation, Network, Perceptron
from fedbilevel.problems.networks.users import users_network
from fedbilevel.user_files import names_file

NETWORKS = {
    "linear": "a linear model",
    "mlp": "fully connected layers and a linear head",
    "conv": "blocks of a 3x3 convolution with stride 2, the mean over positions, and a linear head",
}
"""The built-in networks, one line each; `path/to/nets.py:net` is a user's own (see `users`)."""

TAKES: dict[str, tuple[str, ...]] = {"linear": (), "mlp": ("hidden", "activation"), "conv": ("filters", "blocks")}
"""The parameters of a problem that shape a built-in network."""


def find(
    name: str,
    shape: Sequence[int],
    outputs: int | None,
    *,
    hidden: Sequence[int] = (200,),
    activation: Activation = "relu",
    filters: int = 32,
    blocks: int = 2,
    key: str = "problem.network",
) -> Network:
    """The network of this name for examples of such a shape, which may come flat.

    Parameters
    ----------
    name
        "linear", "mlp", "conv", or "path/to/nets.py:net".
    shape
        Of one example as the data hold it: (features,), (side, side) or (side, side, channels), say.
    outputs
        How many numbers the network says of an example; None where its representation alone is wanted.
    hidden, activation
        Of "mlp": widths of the hidden layers; "relu" or "tanh".
    filters, blocks
        Of "conv": filters of each block, and how many blocks there are.
    key
        What errors name; they find hidden, activation, filters and blocks in the same table.

    "conv" does not normalise: running statistics would be a state of the clients' beside the vectors that travel, and
    statistics of a batch would let a loss depend on the examples beside its own.

    Raises BadInput for an unknown name, a parameter out of range, data that are no square images for "conv", a network
    that memory cannot hold, and a user's network that cannot be used.
    """
    shape, table = tuple(int(each) for each in shape), key.rpartition(".")[0]

    def refuse(parameter: str, value: object, allowed: str) -> BadInput:
        return BadInput(f"{table}.{parameter}" if table else parameter, value, allowed)

    if names_file(name):
        return users_network(name, shape, outputs, key)
    known = [*NETWORKS, "path/to/nets.py:net"]
    if outputs is None:
        known.remove("linear")
    if name not in known[:-1]:
        raise unknown(key, name, known)
    told = outputs or 1  # of a representation nobody reads the head
    network: Network
    if name == "conv":
        for parameter, value in (("filters", filters), ("blocks", blocks)):
            if value < 1:
                raise refuse(parameter, value, "an integer of at least 1")
        if len(shape) not in (2, 3) or shape[0] != shape[1]:
            raise BadInput(key, name, f"another network: it takes square images, and an example's shape is {shape}")
        channels = shape[2] if len(shape) == 3 else 1
        network = Convolutions(channels, filters, told, blocks, normalise=False, shape=shape, native=True)
        require(12.0 * 8 * network.size, key, "fewer filters or blocks")
        return network
    if name == "mlp":
        if len(hidden) == 0 or min(hidden) < 1:
            raise refuse("hidden", list(hidden), "a list of at least one width of at least 1")
        if activation not in ("relu", "tanh"):
            raise refuse("activation", activation, '"relu" or "tanh"')
    network = Perceptron([math.prod(shape), *(hidden if name == "mlp" else ())], told, activation)
    require(12.0 * 8 * network.size, f"{table}.hidden" if table else "hidden", "narrower layers")
    return network
