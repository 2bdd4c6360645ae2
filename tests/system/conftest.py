"""Which of these tests may run side by side: all but those marked `alone`, in any order of files."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "alone: no test that computes may run meanwhile, since it measures time or watches the whole host"
    )
