"""`python -m fedbilevel`, and the command `fedbilevel`: the command line of `experiments`."""

from __future__ import annotations

import sys

from fedbilevel.packages import see_that_they_are_ours


def main() -> int:
    """Run the command line of this process and return its exit status; 2 where a file shadows one of our packages."""
    try:
        see_that_they_are_ours()
    except ImportError as error:
        print(f"fedbilevel: {error}", file=sys.stderr)
        return 2
    from experiments.cli import main as command_line

    return command_line()


if __name__ == "__main__":
    sys.exit(main())
