"""The ranks that the tests of this folder run on: one start per world size, of the selected tests only."""

from collections.abc import Callable

import pytest
from ranks import Outcome, launch


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ranks(key): the body of this test runs on every rank of a process group")


@pytest.fixture(scope="session")
def launched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, str | None], Outcome]:
    outcomes: dict[tuple[int, str | None], Outcome] = {}

    def of(world_size: int, launcher: str | None) -> Outcome:
        if (world_size, launcher) not in outcomes:
            keys = [
                marker.args[0]
                for item in request.session.items
                if isinstance(item, pytest.Function) and (marker := item.get_closest_marker("ranks"))
                if item.callspec.params["world_size"] == world_size and item.callspec.params["launcher"] == launcher
            ]
            folder = tmp_path_factory.mktemp(f"{launcher or 'ranks'}{world_size}")
            outcomes[world_size, launcher] = launch(world_size, keys, folder, launcher)
        return outcomes[world_size, launcher]

    return of
