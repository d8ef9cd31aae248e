"""What is relied upon of Flower's private modules: a release that moves it fails here."""

from collections.abc import Iterator

import pytest
from flwr.app import Error, Message, RecordDict

from server.grids import flower_internals
from tests.processes.identity import identity_kept


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Every test starts in a process without an identity, as a fresh one is."""
    with identity_kept(fresh=True):
        yield


def test_flower_message_needs_an_identity_and_takes_it_from_task_identity() -> None:
    with pytest.raises(RuntimeError, match="not set"):
        Message(RecordDict(), 2, "query.ask")
    flower_internals.claim_identity(run_id=77)
    message = Message(RecordDict(), 2, "query.ask")
    assert message.metadata.run_id == 77
    assert message.metadata.src_node_id == flower_internals.SERVER_NODE_ID
    assert message.metadata.message_id == ""


def test_flower_reply_takes_its_addresses_from_the_message_not_from_the_identity() -> None:
    flower_internals.claim_identity(run_id=77)
    message = Message(RecordDict(), 2, "query.ask", group_id="round 3")
    flower_internals.stamp_sender(message, run_id=78)
    flower_internals.stamp_id(message, "m")
    for reply in (Message(RecordDict(), reply_to=message), Message(Error(2, "why"), reply_to=message)):
        assert reply.metadata.run_id == 78
        assert reply.metadata.reply_to_message_id == "m"
        assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (2, flower_internals.SERVER_NODE_ID)
        assert (reply.metadata.group_id, reply.metadata.message_type) == ("round 3", "query.ask")


def test_flower_constants_and_the_empty_run() -> None:
    assert flower_internals.CLIENT_APP_RAISED_EXCEPTION == 2
    assert flower_internals.SERVER_NODE_ID == 1
    run = flower_internals.empty_run(5)
    assert isinstance(run, flower_internals.Run)
    assert run.run_id == 5


def test_flower_message_copy_has_metadata_of_its_own() -> None:
    flower_internals.claim_identity(run_id=1)
    message = Message(RecordDict(), 2, "query.ask")
    copied = flower_internals.message_copy(message, RecordDict())
    copied.metadata.dst_node_id = 3
    flower_internals.stamp_id(copied, "copied")
    assert (message.metadata.dst_node_id, message.metadata.message_id) == (2, "")
