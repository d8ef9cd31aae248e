"""What a run has found: its history, targets and what they took, its models; and how files are written."""

from fedbilevel.results.files import write_whole
from fedbilevel.results.history import COLUMNS, Row, read_history, write_history
from fedbilevel.results.summary import SUMMARY_COLUMNS, summarise, write_summary
from fedbilevel.results.targets import Target

__all__ = [
    "COLUMNS",
    "SUMMARY_COLUMNS",
    "Row",
    "Target",
    "read_history",
    "summarise",
    "write_history",
    "write_summary",
    "write_whole",
]
