"""Which of these tests may run side by side: all but those marked `alone`, file by file, the longest ones first."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "alone: no test that computes may run meanwhile, since it measures time or watches the whole host"
    )
    config.option.loadscopereorder = False  # pytest-xdist would begin with the file that has most tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By what they may take at most: one of the long ones that began last would be waited for alone."""
    items.sort(key=lambda item: -item.get_closest_marker("timeout", pytest.mark.timeout(0).mark).args[0])
