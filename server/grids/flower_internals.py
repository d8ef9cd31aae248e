"""Everything that this project uses of Flower's private modules, behind documented names.

Flower's `Grid` is a public base class, but a grid of one's own needs a `Run`, the task identity behind the `Message`
constructor, and the right to number messages; Flower has no public name for these.
`tests/server/grids/test_flower_internals.py` says what is relied upon, so that a Flower release that moves it fails
there.
"""

from __future__ import annotations

import copy

from flwr.app import Message, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "CLIENT_APP_RAISED_EXCEPTION",
    "SERVER_NODE_ID",
    "Run",
    "claim_identity",
    "empty_run",
    "message_copy",
    "stamp_id",
    "stamp_sender",
]

SERVER_NODE_ID: int = SUPERLINK_NODE_ID
"""The node id under which a ServerApp sends; no client may have it."""

CLIENT_APP_RAISED_EXCEPTION: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
"""The code of an error reply that stands for an exception in the ClientApp."""

_SERVER_TASK_ID = 1


def empty_run(run_id: int) -> Run:
    """A `Run` with this id and nothing else in it."""
    return Run.create_empty(run_id)


def claim_identity(run_id: int) -> None:
    """Let `Message(...)` be called in this process, as the server of the run `run_id`, unless it already can.

    The identity is one per process. Where it is set already, by another grid or by a Flower runtime around this one, it
    stays: a grid does not depend on its value, because `stamp_sender` writes the sender into every message it carries.
    """
    for name, value in (("task_id", _SERVER_TASK_ID), ("run_id", run_id), ("node_id", SERVER_NODE_ID)):
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:  # what Flower raises for an identity that is not set
            setattr(TaskIdentity, name, value)


def stamp_sender(message: Message, run_id: int) -> None:
    """Write into the message that the server of the run `run_id` sends it, whatever the process's identity is."""
    metadata = message.metadata
    metadata.__dict__["_run_id"] = run_id
    metadata.__dict__["_src_node_id"] = SERVER_NODE_ID
    metadata.src_task_id = _SERVER_TASK_ID


def stamp_id(message: Message, message_id: str) -> None:
    """Give the message its id, which Flower leaves to whatever carries messages."""
    message.metadata.__dict__["_message_id"] = message_id


def message_copy(message: Message, content: RecordDict | None) -> Message:
    """A message with the same metadata (a copy) and, unless it carries an error, the content given."""
    error = message.error if message.has_error() else None
    return make_message(metadata=copy.copy(message.metadata), content=content, error=error)
