"""Versions of what is installed; what an extra would bring need not be."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from dtrain.doctor import host


def test_a_package_of_an_extra_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "hydra-core":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(host, "version", version)
    assert host.versions().finding.endswith("dtrain 1.0, torch 1.0, numpy 1.0, safetensors 1.0")
