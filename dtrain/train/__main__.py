"""`python -m dtrain.train`."""

import sys

from dtrain.arguments import ending

if __name__ == "__main__":
    with ending():
        from dtrain.train.entry import main

        sys.exit(main())
