"""`python -m dtrain.cli <verb>`, which a launcher can start on every rank."""

import sys

from dtrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
