"""The start of the program, before anything heavy is imported: `python -m wan`, `wan-generate` and `generate.py`."""

import sys

from wan.interrupts import end_with_torchrun, leaving_at_once, without_traceback


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code. Ctrl-C ends it without a traceback, also while it starts or leaves."""
    if argv is None:
        without_traceback()
    with leaving_at_once():
        from wan.program import keep_streams_open, share_cores

        keep_streams_open()
        end_with_torchrun()
        share_cores()
        from wan.cli import main as run
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
