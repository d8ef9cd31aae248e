"""What a run leaves behind for a person: its directory, with tables and figures."""

from fedbilevel.report.directory import RunDirectory

__all__ = ["RunDirectory"]
