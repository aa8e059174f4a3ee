"""`python -m greendrop`: the command line."""

import sys

from greendrop.cli import main

if __name__ == "__main__":
    sys.exit(main())
