"""TensorBoard: event files below DIR/tensorboard, a folder per algorithm and seed."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from experiments.live.backend import About, Backend, State, Stream
from fedbilevel.results.files import file_name

FOLDER = "tensorboard"


class TensorBoard(Backend):
    """Scalars by column, the round as the step: `tensorboard --logdir DIR/tensorboard`."""

    def begin(self, about: About) -> Stream:
        """Begin or go on with the folder of a run."""
        return _Events(about.directory / FOLDER / file_name(about.name))


class _Events(Stream):
    def __init__(self, folder: Path) -> None:
        steps = _steps(folder)
        # of the last row a kill may have left a part: it is taken back, and comes again
        self.held = steps[-2] if len(steps) > 1 else -1
        _wait_for_a_later_second(folder)
        self._writer = SummaryWriter(str(folder), purge_step=steps[-1] if steps else None)

    def write(self, round: int, values: Mapping[str, float]) -> None:
        for column, value in values.items():
            self._writer.add_scalar(column, value, round)
        self._writer.flush()

    def end(self, state: State) -> None:
        self._writer.close()


def _wait_for_a_later_second(folder: Path) -> None:
    """Event files are read in the order of their names, which begin with the second in which they were opened."""
    names = [path.name for path in folder.glob("events.out.tfevents.*")]
    last = max((int(name.split(".")[3]) for name in names), default=0)
    if last - time.time() < 60:  # one from the future, of another clock, is not waited for
        while int(time.time()) <= last:
            time.sleep(0.02)


def _steps(folder: Path) -> list[int]:
    """The steps of which a folder's event files hold anything."""
    if not folder.is_dir():
        return []
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every row that was taken back
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    return sorted({event.step for tag in events.Tags()[SCALARS] for event in events.Scalars(tag)})
