"""docker/requirements.lock: what images are built of is what tests run with, and every file of it has a hash."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    text = (ROOT / "docker" / "requirements.lock").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"\S+==\S+( +--hash=sha256:[0-9a-f]{64})+", line) for line in lines)
    pins = (line.split()[0].partition("==") for line in lines)
    return {normal(name): version for name, _, version in pins}


def test_versions_are_those_that_tests_run_with() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normal(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}
    assert {name: pinned[name] for name in locked()} == {n: v.partition("+")[0] for n, v in locked().items()}


def test_all_that_dtrain_needs_is_there_cryptography_too() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(one for name in ("train", "report", "pack", "mpi") for one in extras[name])]
    assert {normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in needed} <= set(locked())


def test_some_entries_of_it_can_be_had_and_all_others() -> None:
    def printed(*names: str) -> list[str]:
        command = [sys.executable, str(ROOT / "docker" / "hashes.py"), *names]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [line.partition("==")[0] for line in done.stdout.splitlines()]

    assert printed("torch", "numpy") == ["torch", "numpy"]
    assert set(printed("-v", "mpich", "mpi4py")) == set(locked()) - {"mpich", "mpi4py"}
