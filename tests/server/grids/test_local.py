"""The in-process grid: what is promised."""

import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from clients.app import array_from_tensor, tensor_from_array
from fedbilevel.errors import BadInput
from server.grids import flower_internals
from server.grids.local import LocalGrid
from tests.processes.identity import identity_kept


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Every test starts in a process without an identity, as a fresh one is."""
    with identity_kept(fresh=True):
        yield


def make_app(answer: Callable[[Message, Context], Message]) -> ClientApp:
    app = ClientApp()
    app.query("ask")(answer)
    return app


def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


def content(**arrays: torch.Tensor) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({name: array_from_tensor(value) for name, value in arrays.items()})})


def ask(grid: LocalGrid, records: RecordDict | None = None, node_ids: list[int] | None = None) -> list[Message]:
    """One message to each node (all, if not told), by the public constructor."""
    records = RecordDict() if records is None else records
    ids = grid.get_node_ids() if node_ids is None else node_ids
    return grid.send_and_receive([Message(records, node_id, "query.ask") for node_id in ids])


def test_nodes_are_listed_in_partition_order_and_none_is_the_server() -> None:
    grid = LocalGrid(make_app(echo), nodes=3)
    assert isinstance(grid, Grid)
    ids = grid.get_node_ids()
    assert len(set(ids)) == 3
    assert flower_internals.SERVER_NODE_ID not in ids
    assert [node.node_id for node in grid.get_nodes()] == ids


def test_no_nodes_is_bad_input() -> None:
    with pytest.raises(BadInput, match="nodes: got 0"):
        LocalGrid(make_app(echo), nodes=0)


def test_context_holds_the_partition_and_the_run_config_and_persists_per_node() -> None:
    def count(message: Message, context: Context) -> Message:
        before = context.state.get("seen")
        seen = before["n"] if isinstance(before, MetricRecord) else 0
        assert isinstance(seen, int)
        context.state["seen"] = MetricRecord({"n": seen + 1})
        partition, partitions = context.node_config["partition-id"], context.node_config["num-partitions"]
        rate = context.run_config["rate"]
        context.run_config["rate"] = -1.0  # its own copy
        assert isinstance(partition, int)
        assert isinstance(partitions, int)
        assert isinstance(rate, float)
        record = MetricRecord({"n": seen + 1, "j": partition, "of": partitions, "rate": rate})
        return Message(RecordDict({"m": record}), reply_to=message)

    run_config: dict[str, bool | float | int | str] = {"rate": 0.5}
    grid = LocalGrid(make_app(count), nodes=3, run_config=run_config)
    ask(grid, node_ids=grid.get_node_ids()[2:])
    replies = ask(grid)
    metrics = [dict(reply.content.metric_records["m"]) for reply in replies]
    assert [(m["n"], m["j"], m["of"]) for m in metrics] == [(1, 0, 3), (1, 1, 3), (2, 2, 3)]
    assert [m["rate"] for m in metrics] == [0.5, 0.5, -1.0]
    assert run_config == {"rate": 0.5}


def test_set_run_starts_afresh() -> None:
    def run_and_state(message: Message, context: Context) -> Message:
        record = MetricRecord({"run": context.run_id, "kept": len(context.state)})
        context.state["kept"] = MetricRecord()
        return Message(RecordDict({"m": record}), reply_to=message)

    grid = LocalGrid(make_app(run_and_state))
    ask(grid)
    (pushed,) = grid.push_messages([Message(RecordDict(), grid.get_node_ids()[0], "query.ask")])
    grid.set_run(flower_internals.empty_run(4321))
    assert grid.run.run_id == 4321
    with pytest.raises(BadInput, match="message_id"):
        grid.pull_messages([pushed])
    (reply,) = ask(grid)
    assert dict(reply.content.metric_records["m"]) == {"run": 4321, "kept": 0}
    assert reply.metadata.run_id == 4321


def test_run_is_a_copy() -> None:
    grid = LocalGrid(make_app(echo))
    run_id = grid.run.run_id
    grid.run.run_id = -5
    assert grid.run.run_id == run_id


def test_train_and_query_dispatch_and_an_unknown_action_is_an_error_reply() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"train": MetricRecord()}), reply_to=message)

    @app.query("hvp")
    def hvp(message: Message, context: Context) -> Message:
        return Message(RecordDict({"hvp": MetricRecord()}), reply_to=message)

    grid = LocalGrid(app)
    (node,) = grid.get_node_ids()
    kinds = ("train", "query.hvp", "query.unheard")
    replies = grid.send_and_receive([Message(RecordDict(), node, kind) for kind in kinds])
    assert [list(reply.content) for reply in replies[:2]] == [["train"], ["hvp"]]
    assert [reply.metadata.message_type for reply in replies] == list(kinds)
    assert "unheard" in str(replies[2].error.reason)


def test_ids_and_addresses_of_messages_and_replies() -> None:
    grid = LocalGrid(make_app(echo), nodes=2)
    messages = [grid.create_message(RecordDict(), "query.ask", node, "7", ttl=60.0) for node in grid.get_node_ids()]
    assert all(message.metadata.run_id == grid.run.run_id for message in messages)
    replies = grid.send_and_receive(messages)
    ids = [message.metadata.message_id for message in messages]
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert len({*ids, *(reply.metadata.message_id for reply in replies), ""}) == 5
    assert [reply.metadata.src_node_id for reply in replies] == grid.get_node_ids()
    assert [reply.metadata.group_id for reply in replies] == ["7", "7"]
    assert all(0 < reply.metadata.ttl <= 60 for reply in replies)


def test_push_only_queues_and_pull_answers_once_in_the_order_asked() -> None:
    calls: list[object] = []

    def note(message: Message, context: Context) -> Message:
        calls.append(context.node_config["partition-id"])
        return echo(message, context)

    grid = LocalGrid(make_app(note), nodes=3)
    ids = grid.push_messages(Message(RecordDict(), node, "query.ask") for node in grid.get_node_ids())
    assert calls == []
    replies = grid.pull_messages(reversed(ids))
    assert calls == [2, 1, 0]
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids[::-1]
    with pytest.raises(BadInput, match="not yet pulled"):
        grid.pull_messages(ids[:1])


def test_what_is_pushed_is_the_message_as_it_was_then() -> None:
    grid = LocalGrid(make_app(echo))
    records = RecordDict({"options": ConfigRecord({"k": 1})})
    ids = grid.push_messages([Message(records, grid.get_node_ids()[0], "query.ask")])
    records.config_records["options"]["k"] = 2
    (reply,) = grid.pull_messages(ids)
    assert reply.content.config_records["options"]["k"] == 1


def test_one_message_object_may_be_pushed_twice() -> None:
    grid = LocalGrid(make_app(echo))
    message = Message(RecordDict(), grid.get_node_ids()[0], "query.ask")
    replies = grid.send_and_receive([message, message])
    assert len({reply.metadata.reply_to_message_id for reply in replies}) == 2


@pytest.mark.parametrize("stranger", [0, flower_internals.SERVER_NODE_ID, 99])
def test_unknown_node_is_bad_input_and_queues_nothing(stranger: int) -> None:
    calls: list[int] = []

    def note(message: Message, context: Context) -> Message:
        calls.append(context.node_id)
        return echo(message, context)

    grid = LocalGrid(make_app(note), nodes=2)
    with pytest.raises(BadInput, match=rf"dst_node_id: got {stranger}; allowed: .* 2 to 3"):
        ask(grid, node_ids=[*grid.get_node_ids(), stranger])
    assert calls == []
    assert len(ask(grid)) == 2


def test_an_exception_becomes_an_error_reply_and_the_others_answer() -> None:
    def fail_on_one(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise ZeroDivisionError("no curvature")
        return echo(message, context)

    replies = ask(LocalGrid(make_app(fail_on_one), nodes=3))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error == Error(flower_internals.CLIENT_APP_RAISED_EXCEPTION, "ZeroDivisionError: no curvature")
    assert replies[1].metadata.reply_to_message_id != ""
    assert replies[1].metadata.message_id != ""
    assert replies[1].metadata.src_node_id == 3


def test_an_error_reply_of_the_app_itself_is_passed_on() -> None:
    def refuse(message: Message, context: Context) -> Message:
        return Message(Error(42, "not today"), reply_to=message)

    (reply,) = ask(LocalGrid(make_app(refuse)))
    assert reply.error == Error(42, "not today")


@pytest.mark.parametrize("wrong", [lambda m, c: None, lambda m, c: m], ids=["None", "the message itself"])
def test_what_is_no_reply_becomes_an_error_reply(wrong: Callable[[Message, Context], Message]) -> None:
    (reply,) = ask(LocalGrid(make_app(wrong)))
    assert "must return a Message(..., reply_to=" in str(reply.error.reason)


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_propagates(ending: type[BaseException]) -> None:
    def interrupt(message: Message, context: Context) -> Message:
        raise ending

    with pytest.raises(ending):
        ask(LocalGrid(make_app(interrupt)))


def test_timeout_asks_no_further_node_and_late_replies_can_be_pulled() -> None:
    grid = LocalGrid(make_app(echo), nodes=2)
    messages = [Message(RecordDict(), node, "query.ask") for node in grid.get_node_ids()]
    assert len(grid.send_and_receive(messages, timeout=60.0)) == 2
    assert grid.send_and_receive(messages, timeout=0.0) == []
    assert len(grid.pull_messages(message.metadata.message_id for message in messages)) == 2


def vandal(message: Message, context: Context) -> Message:
    """Answers with what it received, then spoils everything within reach."""
    seen = message.content
    items = cast(list[int], seen.config_records["options"]["list"])
    reply = Message(
        RecordDict(
            {
                "x": MetricRecord({"sum": float(tensor_from_array(seen.array_records["arrays"]["x"]).sum())}),
                "names": ConfigRecord({"names": list(seen), "list": list(items)}),
            }
        ),
        reply_to=message,
    )
    tensor_from_array(seen.array_records["arrays"]["x"]).fill_(math.nan)
    seen.array_records["arrays"]["x"].data = b""
    seen.array_records["arrays"]["y"] = Array(np.zeros(1))
    items.append(9)
    seen.config_records["options"]["more"] = True
    seen["new"] = MetricRecord()
    message.metadata.dst_node_id = 0
    return reply


@pytest.mark.parametrize("ids_computed", [False, True], ids=["plain", "object id computed"])
def test_what_a_node_does_to_its_records_reaches_neither_the_server_nor_another_node(ids_computed: bool) -> None:
    grid = LocalGrid(make_app(vandal), nodes=3)
    records = content(x=torch.ones(4))
    records["options"] = ConfigRecord({"list": [1, 2]})
    if ids_computed:
        assert records.object_id
    for reply in ask(grid, records) + ask(grid, records):
        assert reply.content.metric_records["x"]["sum"] == 4.0
        assert dict(reply.content.config_records["names"]) == {"names": ["arrays", "options"], "list": [1, 2]}
    assert list(records) == ["arrays", "options"]
    assert list(records.array_records["arrays"]) == ["x"]
    assert torch.equal(tensor_from_array(records.array_records["arrays"]["x"]), torch.ones(4))
    assert dict(records.config_records["options"]) == {"list": [1, 2]}


def test_what_the_server_does_to_a_reply_does_not_reach_the_node() -> None:
    def keep(message: Message, context: Context) -> Message:
        if "kept" not in context.state:
            context.state["kept"] = ArrayRecord({"v": array_from_tensor(torch.ones(2))})
        return Message(RecordDict({"kept": context.state["kept"]}), reply_to=message)

    grid = LocalGrid(make_app(keep))
    (reply,) = ask(grid)
    reply.content.array_records["kept"]["v"].data = b""
    del reply.content.array_records["kept"]["v"]
    (reply,) = ask(grid)
    assert torch.equal(tensor_from_array(reply.content.array_records["kept"]["v"]), torch.ones(2))


def test_the_bytes_of_arrays_are_shared_not_copied() -> None:
    grid = LocalGrid(make_app(echo))
    records = content(x=torch.ones(1000))
    (reply,) = ask(grid, records)
    assert reply.content.array_records["arrays"]["x"].data is records.array_records["arrays"]["x"].data


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_dtype_and_value_survive_the_round_trip(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max
    sent = torch.tensor([0, 1, -3, largest], dtype=dtype)
    (reply,) = ask(LocalGrid(make_app(echo)), content(x=sent))
    received = tensor_from_array(reply.content.array_records["arrays"]["x"])
    assert received.dtype == dtype
    assert torch.equal(received, sent)


def test_grids_one_after_another_and_by_turns() -> None:
    def whose(message: Message, context: Context) -> Message:
        return Message(RecordDict({"m": MetricRecord({"run": context.run_id})}), reply_to=message)

    def run_seen(grid: LocalGrid, message: Message) -> list[object]:
        (reply,) = grid.send_and_receive([message])
        return [reply.content.metric_records["m"]["run"], reply.metadata.run_id, message.metadata.run_id]

    first, second = LocalGrid(make_app(whose)), LocalGrid(make_app(whose))
    assert first.run.run_id != second.run.run_id
    node = first.get_node_ids()[0]
    early = {grid: Message(RecordDict(), node, "query.ask") for grid in (first, second)}
    for grid in (first, second, first):
        assert run_seen(grid, Message(RecordDict(), node, "query.ask")) == [grid.run.run_id] * 3
        assert run_seen(grid, grid.create_message(RecordDict(), "query.ask", node, "1")) == [grid.run.run_id] * 3
        assert run_seen(grid, early[grid]) == [grid.run.run_id] * 3
    pushed = first.push_messages([Message(RecordDict(), node, "query.ask")])
    with pytest.raises(BadInput, match="message_id"):
        second.pull_messages(pushed)


def test_a_grid_may_be_used_within_a_client_of_another() -> None:
    def outer(message: Message, context: Context) -> Message:
        (reply,) = ask(LocalGrid(make_app(echo)), message.content)
        return Message(reply.content, reply_to=message)

    (reply,) = ask(LocalGrid(make_app(outer)), content(x=torch.arange(3)))
    assert torch.equal(tensor_from_array(reply.content.array_records["arrays"]["x"]), torch.arange(3))


def test_nothing_is_printed_or_logged_even_for_an_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(message: Message, context: Context) -> Message:
        raise ValueError("quiet")

    records: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.Logger, "handle", lambda self, record: records.append(record))
    grid = LocalGrid(make_app(fail))
    grid.send_and_receive([grid.create_message(RecordDict(), "query.ask", grid.get_node_ids()[0], "1")])
    assert records == []
    assert capfd.readouterr() == ("", "")


def test_a_fresh_process_needs_no_environment_and_starts_no_thread_or_connection() -> None:
    script = """
import sys, threading
def refuse(event, args):
    if event in ("socket.connect", "socket.bind", "subprocess.Popen"):
        raise RuntimeError(event)
sys.addaudithook(refuse)
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from server.grids.local import LocalGrid
app = ClientApp()
app.query("ask")(lambda message, context: Message(message.content, reply_to=message))
grid = LocalGrid(app)
(reply,) = grid.send_and_receive([Message(RecordDict(), grid.get_node_ids()[0], "query.ask")])
assert reply.has_content()
assert threading.active_count() == 1, threading.enumerate()
assert "ray" not in sys.modules
"""
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_identity_that_is_set_stays_and_the_grid_works_under_it() -> None:
    """A Flower runtime around this grid must find its own identity unchanged."""
    TaskIdentity.run_id = 123456
    TaskIdentity.node_id = 654321
    grid = LocalGrid(make_app(echo))
    (reply,) = ask(grid)
    assert reply.metadata.run_id == grid.run.run_id
    assert reply.metadata.dst_node_id == flower_internals.SERVER_NODE_ID
    assert Message(RecordDict(), 2, "query.ask").metadata.run_id == 123456
    assert Message(RecordDict(), 2, "query.ask").metadata.src_node_id == 654321
