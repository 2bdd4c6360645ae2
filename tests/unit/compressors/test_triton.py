"""Triton's kernels without a GPU: they run in its interpreter, and are compiled for what no CPU can run.

Both in processes of their own: whether triton interprets is settled when it is imported. tests/distributed/test_cuda.py
runs them where there is a device.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from programs import REPOSITORY, environment, run

HERE, TRITON = Path(__file__).parent, REPOSITORY / "build" / "triton"
pytestmark = pytest.mark.skipif(not (TRITON / "installed").exists(), reason="no triton in build/triton: make triton")


def with_triton(**extra: str) -> dict[str, str]:
    """An environment with triton, which is not installed where other tests run."""
    return environment({"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{TRITON}", **extra})


def test_kernels_say_what_torch_says_in_the_interpreter() -> None:
    tests = [str(HERE / name) for name in ("test_compiled.py", "interpreted_kernels.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = run(command, REPOSITORY, env=with_triton(TRITON_INTERPRET="1", DTRAIN_TEST_CODEC="triton"))
    done.expect()
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 20


def test_kernels_compile_for_a_gpu_and_round_as_torch_does(tmp_path: Path) -> None:
    """In PTX: fma where addcmul rounds once, none where it rounds twice; IEEE's division; denormals stay."""
    command = [sys.executable, str(HERE / "triton_to_ptx.py")]
    kernels = run(command, tmp_path, env=with_triton(TRITON_CACHE_DIR=str(tmp_path))).expect().json
    assert len(kernels) == 12
    for name, ptx in kernels.items():
        fused = len(re.findall(r"\bfma\.rn\.f32", ptx))
        assert (fused > 0) == name.endswith("once"), name
        assert "ftz" not in ptx, name
        assert "approx" not in ptx and "full.f32" not in ptx, name
    assert "div.rn.f32" in kernels["_quantise_by_largest once"]
