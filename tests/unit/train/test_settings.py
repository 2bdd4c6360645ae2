from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dtrain.train.compose import plain, read_request
from dtrain.train.config import TrainConfig, from_data
from dtrain.train.settings import check_resumable, difference_of, kept_in_checkpoints, shared_by_ranks

FACTS = {"parameters": "abc"}


def configured(*overrides: str) -> TrainConfig:
    composed = read_request(overrides).composed
    assert composed is not None
    return from_data(plain(composed))


@pytest.mark.parametrize(
    "setting",
    [
        "optimizer.learning_rate=0.2",
        "optimizer.momentum=0.5",
        "seed=7",
        "batch_size=9",
        "on_nonfinite=skip",
        "log_every=3",
        "compressor=int8",
        "model.dropout=0.1",
        "bucket_bytes=1000",
        "observe.meter=false",
        "optimizer=adamw",
    ],
)
def test_what_would_set_replicas_apart_or_break_a_collective_is_shared_by_ranks(setting: str) -> None:
    one, two = (shared_by_ranks(configured(*given), FACTS) for given in ((), (setting,)))
    said = difference_of([dict(one), dict(two), dict(one)])
    assert said is not None
    assert "on ranks 0, 2 and " in said
    assert setting.partition("=")[0].partition(".")[0] in said


def test_a_compressor_s_options_are_compared_by_name() -> None:
    one = shared_by_ranks(configured("compressor=int8"), FACTS)
    two = shared_by_ranks(configured("compressor=int8", "compressor.rounding=stochastic"), FACTS)
    assert difference_of([one, two]) == 'compressor.rounding is "nearest" on rank 0 and "stochastic" on rank 1'


def test_what_a_host_may_have_for_itself_is_not_compared() -> None:
    own = (
        "run_dir=/a",
        "threads=3",
        "codec=torch",
        "observe.progress=false",
        "observe.prometheus.port=9500",
        "data.num_workers=2",
    )
    one, two = (shared_by_ranks(configured(*given), FACTS) for given in ((), own))
    assert difference_of([one, two]) is None


def check(saved: tuple[str, ...], now: tuple[str, ...], changes: tuple[str, ...] = ()) -> None:
    kept: list[Any] = [kept_in_checkpoints(configured(*given), FACTS) for given in (saved, now)]
    check_resumable(kept[0], kept[1], changes, Path("runs/a"))


def test_a_run_may_go_on_longer_and_be_watched_differently() -> None:
    check(
        ("num_steps=8",), ("num_steps=20", "log_every=1", "save_every=5", "backend=mpi", "overlap=false", "run_dir=/b")
    )


def test_what_differs_is_listed_with_the_way_to_go_on_all_the_same() -> None:
    with pytest.raises(ValueError) as refused:
        check((), ("optimizer.learning_rate=0.5", "batch_size=4"))
    said = str(refused.value)
    assert "batch_size was 32 and is 4; optimizer.learning_rate was 0.01 and is 0.5" in said
    assert "resume_changes=[batch_size,optimizer.learning_rate]" in said
    check((), ("optimizer.learning_rate=0.5", "batch_size=4"), ("batch_size", "optimizer.learning_rate"))


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("compressor=int8", "compressor.name"),
        ("model=squeezenet1_0", "model.name"),
        ("data=synthetic", "data.name"),
        ("optimizer=adamw", "optimizer.name"),
        ("seed=1", "seed"),
        ("+phases.prune.num_epochs=1", "phases.prune.num_epochs"),
    ],
)
def test_another_run_is_refused_for_good(setting: str, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} was .*init_weights"):
        check((), (setting,))
    with pytest.raises(ValueError, match=f"resume_changes names {name}, which may not differ"):
        check((), (setting,), (name,))


def test_other_data_under_the_same_settings_is_another_run() -> None:
    config = configured()
    saved, now = (kept_in_checkpoints(config, facts) for facts in (FACTS, {"parameters": "abd"}))
    with pytest.raises(ValueError, match=r'facts\.parameters was "abc" and is "abd".*init_weights'):
        check_resumable(saved, now, (), Path("runs/a"))
    with pytest.raises(ValueError, match="which may not differ"):
        check_resumable(saved, now, ("facts.parameters",), Path("runs/a"))
