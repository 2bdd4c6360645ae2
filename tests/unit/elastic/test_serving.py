"""Where the store of a job listens, and where it cannot."""

from __future__ import annotations

import socket

import pytest

from dtrain.elastic.serving import _listen


def test_the_store_is_reached_at_its_address_alone() -> None:
    store = _listen("127.0.0.2", 0)
    socket.create_connection(("127.0.0.2", store.port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", store.port), timeout=5)


def test_an_address_that_cannot_be_had_is_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^cannot listen at 203\.0\.113\.1:0 \(.*\): choose another --host or --port$"
    ):
        _listen("203.0.113.1", 0)
