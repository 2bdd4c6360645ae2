"""`python -m dtrain.train`."""

import os
import sys

from dtrain.arguments import ending, say_doing
from dtrain.train.parent import end_with_agent

if __name__ == "__main__":
    end_with_agent(os.environ)  # before torch is imported, which takes seconds
    with ending():
        say_doing("starting")
        from dtrain.train.entry import main

        sys.exit(main())
