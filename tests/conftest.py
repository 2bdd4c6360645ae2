"""What all tests share. This folder is on the import path, so that tests can import `contracts`."""

import signal
from typing import Any

import pytest
import torch

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background, and its children, ignore it
torch.set_num_threads(1)  # sums then come out the same on every machine, and ranks do not fight over cores


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of `pytest -n 2`: what goes to one worker together is a file, and of tests of ranks those that share a start.

    pytest-xdist's own way to say so, the mark xdist_group, does nothing under pytest 9.2: it renames tests in vain.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFileOrStart(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path, _, test = nodeid.partition("::")
            start = test.partition("[")[2]
            return f"ranks {start}" if path.startswith("tests/distributed/") and start else path

    return ByFileOrStart(config, log)
