"""The examples with other people's trainers, as a reader would run them: what they save, where they end, and resuming.

Their packages are the extra `examples`, which `make examples` installs. DTRAIN_FULL=1 has them all on 4 ranks too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from programs import REPOSITORY, environment, on_ranks, run

pytestmark = pytest.mark.timeout(1000)

RESUMED = {  # what a run saved after its first epoch, under --save
    "accelerate": "epoch1",
    "lightning": "epoch0.ckpt",
    "transformers": "checkpoint-40",
    "ray": "run/epoch1",
}
IS_FULL = os.environ.get("DTRAIN_FULL") == "1"
RANKS = [2, 4] if IS_FULL else [2]
Trained = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", params=RESUMED)
def wrapper(request: pytest.FixtureRequest) -> str:
    """The name of one whose package is there."""
    name: str = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: make examples")
    return name


@pytest.fixture(scope="module")
def trained(wrapper: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What the wrapper's example says at its end, as `trained(ranks, *options)`."""
    folder = tmp_path_factory.mktemp(wrapper)
    quiet = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false"}
    quiet["RAY_worker_niceness"] = "0"  # 15 by default, which beside other tests is next to nothing

    @cache
    def train(ranks: int, *options: str) -> dict[str, Any]:
        program = [str(REPOSITORY / "examples" / f"{wrapper}_gpt.py"), *options]
        command = [sys.executable, *program, f"--workers={ranks}"] if wrapper == "ray" else on_ranks(ranks, *program)
        said = run(command, folder, env=environment(quiet)).expect().stdout
        result: dict[str, Any] = json.loads(next(line for line in said.splitlines() if line.startswith('{"')))
        return result

    return train


@pytest.mark.parametrize("ranks", RANKS)
def test_int4_ends_where_fp32_ends_for_an_eighth_of_the_bytes(trained: Trained, ranks: int) -> None:
    epochs = f"--epochs={ranks}"  # as many steps on more ranks
    fp32, int4 = trained(ranks, epochs), trained(ranks, epochs, "--compress=int4", f"--save=saved{ranks}")
    assert int4["loss"] <= 1.005 * fp32["loss"]
    assert 7.8 < fp32["exchanged_bytes"] / int4["exchanged_bytes"] < 8


def test_a_run_that_is_resumed_goes_on_with_its_compressors_state(wrapper: str, trained: Trained) -> None:
    if wrapper == "ray" and not IS_FULL:
        pytest.skip("a third start of Ray takes a minute: DTRAIN_FULL=1")
    whole = trained(2, "--epochs=2", "--compress=int4", "--save=saved2")
    resumed = trained(2, "--epochs=2", "--compress=int4", f"--resume=saved2/{RESUMED[wrapper]}")
    assert resumed["loss"] == pytest.approx(whole["loss"], rel=2e-3)  # DDP orders its buckets anew: other roundings
    assert resumed["exchanged_bytes"] < 0.6 * whole["exchanged_bytes"]
