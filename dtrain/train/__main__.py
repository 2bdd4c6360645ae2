"""`python -m dtrain.train`."""

import sys

from dtrain.arguments import ending, say_doing

if __name__ == "__main__":
    with ending():
        say_doing("starting")
        from dtrain.train.entry import main

        sys.exit(main())
