"""Flower's task identity, which is one per process, as it was before."""

from collections.abc import Iterator
from contextlib import contextmanager

from flwr.supercore.task_identity import TaskIdentity

IDENTITY = ("_task_id", "_run_id", "_node_id")


@contextmanager
def identity_kept(*, fresh: bool = False) -> Iterator[None]:
    """Leave the identity as it was; fresh: until then there is none, as in a process that has just begun."""
    before = {name: getattr(TaskIdentity, name) for name in IDENTITY}
    try:
        for name in IDENTITY if fresh else ():
            setattr(TaskIdentity, name, None)
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)
