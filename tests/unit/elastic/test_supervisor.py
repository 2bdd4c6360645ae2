"""When a host that joined a job ends its workers."""

import signal
from unittest.mock import Mock

import pytest

from dtrain.elastic import supervisor
from dtrain.elastic.supervisor import Supervisor


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    monkeypatch.setattr(supervisor, "LEAVING_SECONDS", 0.05)
    monkeypatch.setattr(Supervisor, "_signal", Mock())
    return Supervisor((), 1, ("127.0.0.1", 1), Mock(), Mock(), "job", is_joined=True)


def ended(host: Supervisor) -> bool:
    host.look()
    signals: Mock = host._signal  # type: ignore[assignment]
    return signals.called


def test_it_leaves_a_while_after_a_signal_and_at_once_after_a_second(joined: Supervisor) -> None:
    joined.stop(signal.SIGTERM)
    assert not ended(joined)
    joined.stop(signal.SIGTERM)
    assert ended(joined)


def test_where_the_whole_job_ends_its_workers_may_save_for_as_long_as_that_takes(joined: Supervisor) -> None:
    joined.stop(signal.SIGTERM)
    joined.stay()
    assert not ended(joined)
    assert joined._leaves_at == float("inf")
    joined.stop(signal.SIGTERM)
    assert ended(joined)
