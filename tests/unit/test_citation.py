"""CITATION.cff speaks of the dtrain that is here."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

import dtrain

ROOT = Path(__file__).parents[2]


def test_its_version_and_licence_are_those_of_the_package() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == project["version"] == dtrain.__version__
    assert cited["license"] == project["license"]
