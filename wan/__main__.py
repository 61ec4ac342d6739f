"""Start the program, before anything heavy is imported: `python -m wan`, `wan-generate` and `generate.py`."""

import sys

from wan.interrupts import end_with_torchrun, leaving_at_once, without_traceback


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code. Ctrl-C ends it without a traceback, also while it starts or leaves.

    The arguments are parsed first, because help and errors about them need no heavy import.
    """
    if argv is None:
        without_traceback()
    with leaving_at_once():
        from wan.program import keep_streams_open, share_cores

        keep_streams_open()
        end_with_torchrun()
        share_cores()
        from wan.arguments import parse

        try:
            args = parse(argv)
        except SystemExit as stop:  # help or the error is printed
            return int(stop.code or 0)
        from wan.cli import main as run
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
