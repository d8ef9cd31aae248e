"""What a run leaves behind: its history, a summary of it, and figures, in a run directory."""

from fedbilevel.results.directory import RunDirectory
from fedbilevel.results.figure import draw
from fedbilevel.results.files import write_whole
from fedbilevel.results.history import COLUMNS, Row, read_history, write_history
from fedbilevel.results.summary import SUMMARY_COLUMNS, summarise, write_summary
from fedbilevel.results.targets import Target

__all__ = [
    "COLUMNS",
    "SUMMARY_COLUMNS",
    "Row",
    "RunDirectory",
    "Target",
    "draw",
    "read_history",
    "summarise",
    "write_history",
    "write_summary",
    "write_whole",
]
