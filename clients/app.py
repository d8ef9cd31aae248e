"""The Flower ClientApp: unpacks a request, lets the node answer it, packs the reply."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Set

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from clients.node import Node, Setting
from clients.own import FILE, node_of_share, partition_of
from fedbilevel.config.setup import Setup
from fedbilevel.errors import BadInput, ClientFailed
from fedbilevel.federation.messages import Kept, Reply, Request

NodeFor = Callable[[str], Node]
"""From the setup that every message carries (`Setup` as JSON) to the node that answers."""


class Decoded:
    """The tensors of the vectors that came to this process: a vector is decoded once and keeps its identity.

    Within a session (one run of the server) a token stands for one vector, whichever node it was sent to; what the
    server no longer has alive is dropped.
    """

    def __init__(self) -> None:
        self._session = ""
        self._tensors: dict[int, Tensor] = {}

    def keep(self, session: str, alive: Set[int]) -> None:
        """Drop what belongs to another session or is not alive."""
        known = self._tensors if session == self._session else {}
        self._session, self._tensors = session, {token: known[token] for token in known.keys() & alive}

    def tensor(self, name: str, token: int, held: ArrayRecord) -> Tensor:
        """Return the vector `name`. Raises LookupError if the node does not hold it."""
        if str(token) not in held:
            raise LookupError(f"vector {name} is not held")
        if token not in self._tensors:
            self._tensors[token] = tensor_from_array(held[str(token)])
        return self._tensors[token]


def make_app(node_for: NodeFor, decoded_of: Callable[[], Decoded] | None = None) -> ClientApp:
    """Build a ClientApp whose nodes come from `node_for`.

    It answers `query.hello` (which partition is this?) and `query.operate` (a `Request`). The vectors that a node was
    sent in this outer iteration stay in its Context, so that any process can answer for it; a node whose Context is
    lost replies with the names of the vectors that it misses, and is asked again with all of them. An exception becomes
    a reply that says what went wrong.

    decoded_of: where decoded vectors are kept; default: with this app. A runtime that pickles the app for every message
    needs a function of a module, which is pickled by name.
    """
    app = ClientApp()
    if decoded_of is None:
        own = Decoded()

        def decoded_of() -> Decoded:
            return own

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        try:
            content = RecordDict({"partition": MetricRecord(dict(partition_of(context.node_config)))})
        except BadInput as error:
            content = _failed(error)
        return Message(content, reply_to=message)

    @app.query("operate")
    def operate(message: Message, context: Context) -> Message:
        try:
            content = _packed(_answer(message.content, context, node_for, decoded_of()))
        except _Missing as missing:
            content = RecordDict({"missing": ConfigRecord({"vectors": missing.names})})
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a user's file may even leave the program
            content = _failed(error)
        return Message(content, reply_to=message)

    return app


class _Missing(Exception):
    """The node does not hold vectors that the server believes it to hold."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.names = names


def _answer(content: RecordDict, context: Context, node_for: NodeFor, decoded: Decoded) -> Reply:
    record = content.config_records["request"]
    what = json.loads(str(record["what"]))
    session, alive, tokens = what["session"], frozenset(what["alive"]), what["tokens"]
    held = _hold(context, session, alive, content.array_records["vectors"])
    decoded.keep(session, alive)
    if missing := [name for name, token in tokens.items() if str(token) not in held]:
        raise _Missing(missing)
    rows = content.array_records.get("own", ArrayRecord())
    own = {name: Kept(tensor_from_array(rows[name]), _booleans(record[f"known {name}"])) for name in rows}
    request = Request(
        operations=tuple(what["operations"]),
        clients=_integers(record["clients"]),
        cut=frozenset(what["cut"]),
        ends=_integers(record["ends"]) if "ends" in record else None,
        skip=int(str(record.get("skip", 0))),
        rows=bool(what["rows"]),
        own=own,
        tensors={name: decoded.tensor(name, token, held) for name, token in tokens.items()},
        tokens=tokens,
        options=what["options"],
        iteration=what["iteration"],
        round=what["round"],
        alive=alive,
    )
    setup, path = str(record["setup"]), context.node_config.get(FILE)
    return (node_for(setup) if path is None else node_of_share(str(path), setup)).answer(request)


def _hold(context: Context, session: str, alive: Set[int], sent: ArrayRecord) -> ArrayRecord:
    """Keep what was sent beside what the node holds of this session and may still be asked for."""
    state = context.state
    held = state.get("held")
    if not isinstance(held, ArrayRecord) or state.config_records["session"]["session"] != session:
        state["held"] = held = ArrayRecord()
        state["session"] = ConfigRecord({"session": session})
    for key in [key for key in held if int(key) not in alive]:
        del held[key]
    for key, array in sent.items():
        held[key] = array
    return held


def _packed(reply: Reply) -> RecordDict:
    sums = {f"{i}.{j}": array_from_tensor(t) for i, outputs in enumerate(reply.sums) for j, t in enumerate(outputs)}
    content = RecordDict({"sums": ArrayRecord(sums), "weight": MetricRecord({"weight": reply.weight})})
    if own := {str(i): array_from_tensor(rows) for i, rows in enumerate(reply.own) if rows is not None}:
        content["own"] = ArrayRecord(own)
    return content


def _failed(error: BaseException) -> RecordDict:
    """What went wrong; `located` if the reason names client, operation and round already."""
    located = isinstance(error, ClientFailed)
    reason = str(error) if located else f"{type(error).__name__}: {error}"
    return RecordDict({"failed": ConfigRecord({"reason": reason, "located": located})})


def _integers(value: object) -> np.ndarray:
    assert isinstance(value, bytes)
    return np.frombuffer(value, dtype=np.int64)


def _booleans(value: object) -> np.ndarray:
    assert isinstance(value, bytes)
    return np.frombuffer(value, dtype=np.bool_).copy()


# ---- a tensor as a Flower `Array`, and back: the one home of the conversion ----
# The bytes are those that `Array(tensor.numpy())` would hold (the `.npy` format), so that all of Flower can carry
# them and `Array.numpy()` reads them. Each way makes a single copy, in half of the time of Flower's own or less.

STYPE = "numpy.ndarray"
"""Flower's name for data in the `.npy` format."""


@functools.lru_cache(maxsize=1024)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What precedes the values of a C-ordered array of this dtype and shape in the `.npy` format."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    return header.getvalue()


def array_from_tensor(tensor: Tensor) -> Array:
    """The tensor's values as a Flower `Array`; one copy, detached from the graph, dtype and shape kept.

    Raises `TypeError` for a dtype that numpy does not have (bfloat16).

    >>> array = array_from_tensor(torch.tensor([1.0, 2.0], dtype=torch.float64))
    >>> array.dtype, array.shape, array.numpy()
    ('float64', (2,), array([1., 2.]))
    """
    values = tensor.contiguous().numpy(force=True)
    dtype, shape = values.dtype.name, values.shape
    return Array(dtype, shape, STYPE, b"".join((_npy_header(dtype, shape), values.data)))


def tensor_from_array(array: Array) -> Tensor:
    """The values of a Flower `Array` as a tensor of its own, on the CPU; writing to it never reaches the array.

    The values are copied into memory that torch allocates: its alignment, on which the last bits of a matrix product
    may depend, is then that of any other tensor, however the message came.

    Raises `TypeError` for an array that is not in the `.npy` format, or whose dtype torch does not have.

    >>> tensor_from_array(array_from_tensor(torch.tensor([[1, 2], [3, 4]])))
    tensor([[1, 2],
            [3, 4]])
    """
    shape = tuple(array.shape)
    header = _npy_header(array.dtype, shape) if array.stype == STYPE else None
    if header is not None and array.data.startswith(header):
        values = np.ndarray(shape, array.dtype, array.data, len(header))
    else:  # framed by another writer (Fortran order, another header version), or refused by Flower with a TypeError
        values = array.numpy()
    tensor = torch.empty(values.shape, dtype=_torch_dtype(values.dtype.name))
    tensor.numpy()[...] = values
    return tensor


def _torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"an array of dtype {name!r} cannot become a tensor")
    return dtype


# ---- what Flower's runtimes run ----


@functools.lru_cache(maxsize=1)
def node_of_setup(setup: str) -> Node:
    """Build the node that a setup describes. Runs follow one another, so only the latest stays built."""
    recipe = Setup.model_validate_json(setup)
    return Node(recipe.problem(), Setting.of(recipe))


@functools.cache
def decoded_of_process() -> Decoded:
    """Return the decoded vectors of this process."""
    return Decoded()


app = make_app(node_of_setup, decoded_of_process)
"""What Flower's runtimes run: see `[tool.flwr.app.components]` in pyproject.toml."""
