"""The command: `python generate.py --help`."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # no traceback of what is imported here
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from wan.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
