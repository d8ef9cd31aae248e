"""`fedbilevel deal`: a config's data as files, one per node of a deployment and one for its server."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.terminal import busy, say
from fedbilevel.config.tables import read
from fedbilevel.errors import BadInput
from server.running.deal import SERVER, deal, node_file

if TYPE_CHECKING:
    from rich.console import Console

_MOST_SEED = 2**62


def run_deal(
    config_file: Path, overrides: Iterable[str], nodes: int, out: Path, seed: int | None, console: Console
) -> None:
    """Write the files, and say whose each is. Raises BadInput as `server.running.deal.deal` does."""
    if seed is not None and not 0 <= seed < _MOST_SEED:
        raise BadInput("--seed", seed, "an integer of at least 0 and below 2**62")
    config = read(config_file, overrides)
    with busy("dealing, and holding the files against the whole"):
        dealt = deal(config, nodes, out, seed)
    starts = [0, *dealt.ends[:-1]]
    for j, (first, end) in enumerate(zip(starts, dealt.ends, strict=True)):
        who = f"client {first}" if end - first == 1 else f"clients {first} to {end - 1}"
        say(console, f"{dealt.folder / node_file(j)}: {who}")
    lost = f"; it cannot measure {', '.join(dealt.lost)}" if dealt.lost else ""
    say(console, f"{dealt.folder / SERVER}: numbers of examples, weights and the test set{lost}")
