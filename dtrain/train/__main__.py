"""`python -m dtrain.train`."""

import os
import sys

from dtrain.arguments import ending, say_doing
from dtrain.train.parent import end_with_agent


def run() -> None:
    """Train as the command line and the environment say, and exit."""
    end_with_agent(os.environ)  # before torch is imported, which takes seconds
    with ending("dtrain train"):
        say_doing("starting")
        from dtrain.train.entry import main

        sys.exit(main())


if __name__ == "__main__":
    run()
