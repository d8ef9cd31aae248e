"""Scripts in processes of their own, and an end for whatever is left of them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes.console import heed_ctrl_c
from tests.processes.flower import processes_with

REPOSITORY = Path(__file__).resolve().parents[2]


def script(code: str, **environment: str) -> subprocess.Popen[str]:
    """Run a script with nothing of this process's Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "FEDBILEVEL_"))}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        env={**kept, **environment},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_ctrl_c,
    )


@contextmanager
def watched(code: str) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """Run a script whose processes can be told by a variable; whatever is left in the end is killed by its pid.

    Its scratch files lie in a folder with a short name, since Ray's sockets do too. Ray's agents write their titles
    over the variable: they are told by their ancestors.
    """
    scratch = Path(tempfile.mkdtemp(prefix="fb"))
    mark = f"FEDBILEVEL_TEST={uuid.uuid4().hex}"
    name, value = mark.split("=")
    process = script(code, **{name: value, "TMPDIR": str(scratch)})
    try:
        yield process, mark, scratch
    finally:
        for pid in processes_with(mark):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=20)
        shutil.rmtree(scratch, ignore_errors=True)
