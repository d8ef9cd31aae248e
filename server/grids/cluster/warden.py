"""Run as a script beside a private Ray: when its driver is gone, killed even, it ends what is left and tidies up.

`python warden.py FOLDER`, with a pipe from the driver as standard input. A process of that Ray is one that has a file
open below FOLDER, which is Ray's own scratch folder. It imports nothing that takes time.
"""

import contextlib
import os
import shutil
import signal
import sys
import time

SECONDS = 10.0
"""How long it looks for processes that are left."""


def users(folder: str) -> list[int]:
    """Return the processes that have a file open below this folder."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):  # it has ended, or is not ours
                files = f"/proc/{name}/fd"
                links = (os.readlink(f"{files}/{number}") for number in os.listdir(files))
                if any(link.startswith(folder + os.sep) for link in links):
                    found.append(int(name))
    return found


def main(folder: str) -> None:
    """Wait for the end of standard input; then end the folder's users, each by its pid, and delete it."""
    sys.stdin.buffer.read()
    deadline = time.monotonic() + SECONDS
    while os.path.isdir(folder) and time.monotonic() < deadline:
        left = users(folder)
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.2)


if __name__ == "__main__":
    main(sys.argv[1])
