# What the loggers' own files hold, read without the project: by run and column, (step, value) in the order of the file.

from __future__ import annotations

import json
import os
import struct


def tensorboard(out):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for folder in sorted((out / "tensorboard").iterdir()):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        found[folder.name] = {
            tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
        }
    return found


def mlflow(out):
    from mlflow.tracking import MlflowClient

    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out.absolute()}/mlflow/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    found = {}
    for run in runs:
        histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        assert run.info.run_name not in found
        assert run.data.params["seed"] == run.info.run_name[-1]
        found[run.info.run_name] = {name: [(m.step, m.value) for m in points] for name, points in histories.items()}
    return found


def wandb(out):
    """The .wandb files: LevelDB's log format, blocks of 32 KiB with fragments of records, in which are protobufs."""
    from wandb.proto import wandb_internal_pb2 as messages

    found = {}
    for path in sorted((out / "wandb").glob("offline-run-*/*.wandb")):
        record, name, rows = b"", "", []
        with open(path, "rb") as file:
            assert file.read(4) == b":W&B"
            file.read(3)
            while True:
                left = 32768 - file.tell() % 32768
                if left < 7:
                    file.read(left)
                head = file.read(7)
                if len(head) < 7:
                    break
                _, length, kind = struct.unpack("<IHB", head)
                record = (b"" if kind in (1, 2) else record) + file.read(length)
                if kind in (1, 4):
                    message = messages.Record()
                    message.ParseFromString(record)
                    if message.HasField("run"):
                        name = message.run.display_name
                    if message.HasField("history"):
                        rows.append(message.history)
        if not rows:  # a kill takes what wandb's own process had not written
            continue
        run = found.setdefault(name, {})
        for row in rows:
            for item in row.item:
                column = item.key or "/".join(item.nested_key)
                if not column.startswith("_"):
                    run.setdefault(column, []).append((row.step.num, json.loads(item.value_json)))
    return found


STORES = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}
