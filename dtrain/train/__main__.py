"""`python -m dtrain.train`."""

import sys

from dtrain.train.entry import main

if __name__ == "__main__":
    sys.exit(main())
