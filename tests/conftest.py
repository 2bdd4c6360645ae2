"""What all tests share. This folder is on the import path, so that tests can import `contracts`."""

import signal

import pytest
import torch

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background, and its children, ignore it
torch.set_num_threads(1)  # sums then come out the same on every machine, and ranks do not fight over cores


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist's own marker, for where it is not installed."""
    config.addinivalue_line("markers", "xdist_group(name): tests that one worker of `pytest -n` must run together")
