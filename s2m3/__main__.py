"""``python -m s2m3``: the command line."""

import sys

from s2m3.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
