"""The start of the program, before anything heavy is imported: `python -m wan`, `wan-generate` and `generate.py`."""

import sys

from wan.interrupts import end_with_torchrun, leaving_at_once
from wan.program import keep_streams_open, share_cores


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code. Ctrl-C while torch is imported ends it without a traceback."""
    keep_streams_open()
    end_with_torchrun()
    share_cores()
    with leaving_at_once():
        from wan.cli import main as run
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
