"""`pip install dtrain` alone meters and compresses; whatever needs more says which extra brings it, in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from dtrain.arguments import MISTAKE, ending
from dtrain.arguments.extras import EXTRAS, missing_extra

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
WITHOUT = """
import contextlib, io, json, sys
from dtrain.arguments.extras import EXTRAS
sys.modules.update(dict.fromkeys(EXTRAS))  # None: as if it were not installed
from dtrain.cli import main
said = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    said.append([code, out.getvalue(), err.getvalue(), "torch" in sys.modules])
import dtrain.meter, dtrain.plan.advice, dtrain.meter.program_meter, dtrain.sync.ddp, dtrain.sync.program
dtrain.meter.install()
print(json.dumps(said))
"""
NOTHING_MEASURED = (
    "nic_bytes_per_step saving_vs_fp32 saving_vs_fp16 accuracy loss step_seconds_median exposed_comm_seconds_median "
    "codec_seconds_median total_wire_bytes_all_ranks payload_bytes_per_step wire_bytes_per_step init_wire_bytes"
)
RUN = {
    **dict.fromkeys(NOTHING_MEASURED.split()),
    "schema": 1,
    "run": "run",
    "model": "squeezenet1_1",
    "variant": "paper layout",
    "data": "digits",
    "seed": 0,
    "backend": "gloo",
    "compressor": "none",
    "world_size": 2,
    "num_classes": 10,
    "num_parameters": 100,
    "num_steps": 3,
    "batch_size_per_rank": 8,
    "grad_bytes": 400,
    "complete": True,
}
VERBS = {
    "--help": (0, ""),
    "compare RUN": (0, ""),
    "train num_steps=3": (2, "dtrain train needs omegaconf: pip install 'dtrain[train]'"),
    "resume RUN": (2, "dtrain resume needs omegaconf: pip install 'dtrain[train]'"),
    "launch --kubernetes trainjob model=alexnet": (2, "dtrain launch needs pyyaml: pip install 'dtrain[train]'"),
    "report RUN": (2, "dtrain report needs matplotlib: pip install 'dtrain[report]'"),
    "pack FOLDER/model.npz --output FOLDER/model.dtz": (
        2,
        "dtrain pack needs constriction: pip install 'dtrain[pack]'",
    ),
    "ship keygen FOLDER/key": (2, "dtrain ship needs cryptography: pip install 'dtrain[pack]'"),
    "cluster run -- true": (2, "dtrain cluster needs pyroute2: pip install 'dtrain[cluster]'"),
    "explain int4": (0, ""),
    "explain top_k density=0.1": (2, "dtrain explain needs omegaconf: pip install 'dtrain[train]'"),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How each verb ends where no extra is installed: code, output, errors, and whether torch was imported by then."""
    import numpy as np

    folder = tmp_path_factory.mktemp("without")
    np.savez(folder / "model.npz", weight=np.zeros((2, 3), np.float32))
    (folder / "summary.json").write_text(json.dumps(RUN))
    (folder / "metrics.jsonl").touch()
    given = {"RUN": str(folder), "FOLDER": str(folder)}
    commands = [[re.sub("RUN|FOLDER", lambda found: given[found[0]], word) for word in verb.split()] for verb in VERBS]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], input=json.dumps(commands), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(VERBS, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("verb", VERBS)
def test_without_extras_a_verb_works_or_names_the_one_that_it_needs(ended: dict[str, Any], verb: str) -> None:
    code, message = VERBS[verb]
    assert ended[verb][0] == code, ended[verb]
    assert ended[verb][2] == (f"dtrain: error: {message}\n" if message else "")


def test_what_needs_no_tensors_imports_no_torch(ended: dict[str, Any]) -> None:
    assert [verb for verb in VERBS if not ended[verb][3]][:3] == ["--help", "compare RUN", "train num_steps=3"]


def test_every_package_of_an_extra_is_known_by_its_module() -> None:
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    required = {
        (re.split(r"[^\w-]", requirement)[0], extra)
        for extra in ("train", "report", "pack", "cluster")
        for requirement in extras[extra]
    }
    assert set(EXTRAS.values()) == required
    assert extras["all"] == ["dtrain[train,report,pack]"]
    packages = packages_distributions()
    for module, (package, _) in EXTRAS.items():
        assert package in [name.lower().replace("_", "-") for name in packages[module]], module


def test_the_first_rank_of_each_host_says_it(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    for local_rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        with pytest.raises(SystemExit) as end, ending("dtrain train"):
            raise ModuleNotFoundError("No module named 'hydra.core'", name="hydra.core")
        assert end.value.code == MISTAKE
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_a_module_of_no_extra_is_an_error_of_ours() -> None:
    error = ModuleNotFoundError("No module named 'dtrain.nothing'", name="dtrain.nothing")
    assert missing_extra("dtrain report", error) is None
    with pytest.raises(ModuleNotFoundError), ending("dtrain report"):
        raise error
