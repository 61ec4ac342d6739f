"""The command: `python generate.py --help`."""

import sys

from wan.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
