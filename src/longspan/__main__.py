"""`python -m longspan`: the same as the `longspan` command."""

import sys

from longspan.cli import main

if __name__ == "__main__":
    sys.exit(main())
