"""`python -m dtrain.train`."""

import os
import sys

from dtrain.train.parent import end_with_agent

if __name__ == "__main__":
    end_with_agent(os.environ)  # before torch is imported, which takes seconds

    from dtrain.train.entry import main

    sys.exit(main())
