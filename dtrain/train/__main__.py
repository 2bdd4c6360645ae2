"""`python -m dtrain.train`."""

import os
import sys

from dtrain.arguments import ending, say_doing


def run() -> None:
    """Train as the command line and the environment say, and exit."""
    with ending("dtrain train"):
        from dtrain.train.parent import end_with_agent

        end_with_agent(os.environ)  # before torch is imported, which takes seconds
        say_doing("starting")
        from dtrain.train.entry import main

        sys.exit(main())


if __name__ == "__main__":
    run()
