"""python -m cgpt is the command line."""

import sys

from cgpt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
