"""A wheel built from the repository, in an environment outside of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from programs import REPOSITORY, environment, read_summary, run

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as nothing may be left in the repository, nor anything old in it be built."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, target = REPOSITORY / name, copy / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), "."]
    run(command, copy, env={**environment(), "PYTHONPATH": ""}).expect(0)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an empty environment with the wheel; what it depends on is borrowed from ours."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder.parent).expect(0)
    interpreter = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--no-deps", "--no-index"]
    run([*install, str(wheel)], folder.parent, env={**environment(), "PYTHONPATH": ""}).expect(0)
    (packages,) = folder.glob("lib/python*/site-packages")
    # a path in a .pth file adds that folder, and not what its own .pth files (our editable install) would add
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def outside() -> dict[str, str]:
    env = environment()
    del env["PYTHONPATH"]
    return env


def test_it_holds_the_configuration_the_data_and_the_report_s_template(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "conf").rglob("*.yaml")}
    assert {f"dtrain/{name}" for name in conf} <= names
    assert {"dtrain/vision/data/digits.npz", "dtrain/report/report.html", "dtrain/report/report.css"} <= names
    assert {"dtrain/py.typed", "dtrain/launch/mpi_rank.sh"} <= names
    assert {f"dtrain/metrics/{name}" for name in ("prometheus.yml", "rules/alerts.yml")} <= names
    assert "dtrain/metrics/grafana/dashboards/bandwidth.json" in names
    outside = ("tests/", "benchmarks/", "build/", "dtrain/metrics/rules/tests/")
    assert not [name for name in names if name.startswith(outside) or name.endswith("build_dashboards.py")]


def test_installed_outside_the_repository_it_trains_on_digits(python: Path, tmp_path: Path) -> None:
    where = run([str(python), "-c", "import dtrain; print(dtrain.__file__)"], tmp_path, env=outside()).expect(0)
    assert Path(where.stdout.strip()).is_relative_to(python.parents[1])
    dtrain = python.with_name("dtrain")
    assert os.access(dtrain, os.X_OK)
    run([str(dtrain), "train", "num_steps=3", "batch_size=8", "run_dir=run"], tmp_path, env=outside()).expect(0)
    summary = read_summary(tmp_path / "run")
    assert summary["complete"] is True
    assert summary["payload_bytes_per_step"] == 4 * summary["num_parameters"]
    scored = run([str(dtrain), "evaluate", "run/model.safetensors", "--json"], tmp_path, env=outside()).expect(0)
    assert scored.json["accuracy"] == summary["accuracy"]
    run([str(dtrain), "dashboard", "export", "watch"], tmp_path, env=outside()).expect(0)
    assert (tmp_path / "watch" / "grafana" / "dashboards" / "training.json").is_file()
    run([str(dtrain), "report", "run"], tmp_path, env=outside()).expect(0)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
