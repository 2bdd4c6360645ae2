"""Ranks that are not of one mind: refused before the first step, or found out at the next evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import on_ranks, run

pytestmark = pytest.mark.timeout(300)

OF_ITS_OWN = """
import os, sys
from dtrain.train.entry import main
if os.environ["RANK"] == "1":
    sys.argv.append(os.environ["OF_RANK_1"])
sys.exit(main())
"""
DRIFTS = """
import os, sys, torch
from dtrain.train.entry import main
from dtrain.train.loop import Loop

train_step = Loop._train_step

def drifting(self, batch, interval):
    train_step(self, batch, interval)
    if os.environ["RANK"] == "2" and self.progress.step == 2:
        with torch.no_grad():
            next(self.learner.model.parameters()).view(-1)[0].mul_(1 + 2**-20)

Loop._train_step = drifting
sys.exit(main())
"""
SETTINGS = ["num_steps=4", "batch_size=8", "run_dir=run", "observe.progress=false", "compressor=int8"]


def said_by(folder: Path, source: str, ranks: int, code: int, **environ: str) -> list[str]:
    from programs import environment

    program = folder / "program.py"
    program.write_text(source)
    ended = run(on_ranks(ranks, str(program), *SETTINGS), folder, env=environment(environ))
    assert "Traceback" not in ended.stdout + ended.stderr
    assert ended.code == code, ended
    return [line for line in ended.stderr.splitlines() if line.startswith("dtrain: error: ")]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("optimizer.learning_rate=0.5", "optimizer.learning_rate is 0.01 on rank 0 and 0.5 on rank 1"),
        ("batch_size=4", "batch_size is 8 on rank 0 and 4 on rank 1"),
        ("compressor.rounding=stochastic", 'compressor.rounding is "nearest" on rank 0 and "stochastic" on rank 1'),
        ("seed=5", "seed is 0 on rank 0 and 5 on rank 1"),
        ("model=squeezenet1_0", 'model.name is "squeezenet1_1" on rank 0 and "squeezenet1_0" on rank 1'),
        ("on_nonfinite=skip", 'on_nonfinite is "raise" on rank 0 and "skip" on rank 1'),
        ("log_every=1", "log_every is 10 on rank 0 and 1 on rank 1"),
    ],
)
def test_ranks_with_different_settings_are_refused_before_they_train(tmp_path: Path, setting: str, said: str) -> None:
    (line,) = said_by(tmp_path, OF_ITS_OWN, 2, 2, OF_RANK_1=setting)
    assert line.startswith("dtrain: error: ranks were started with different settings: ")
    assert said in line
    assert not (tmp_path / "run").exists()


def test_a_replica_that_drifts_by_one_last_place_is_named_at_the_next_evaluation(tmp_path: Path) -> None:
    (line,) = said_by(tmp_path, DRIFTS, 3, 1)
    assert line.startswith("dtrain: error: replicas have diverged by step 4: rank 2 has parameters that rank 0 has not")
