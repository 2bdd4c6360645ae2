"""A sweep: what is run for each combination, what is not run again, and what becomes of one that fails."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from stand_in import stand_in

from dtrain.cli import main
from dtrain.launch import sweep
from dtrain.train.compose import combinations, plain, read_request


def varied(*settings: str) -> list[str]:
    return [" ".join(combination.settings) for combination in combinations(settings)]


def hold_run(folder: Path, *settings: str, ranks: int = 2, complete: bool = True) -> None:
    """What a run of these settings leaves, as far as a sweep looks."""
    (folder / "ledger").mkdir(parents=True)
    composed = read_request([*settings, f"run_dir={folder}"]).composed
    assert composed is not None
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(composed)))
    (folder / "summary.json").write_text(json.dumps({"world_size": ranks, "complete": complete}))


def test_values_are_combined_in_hydra_s_grammar_the_last_fastest() -> None:
    assert varied("model=a,b", "seed=range(0,2)", "x='1,2'") == [
        "model=a seed=0 x='1,2'",
        "model=a seed=1 x='1,2'",
        "model=b seed=0 x='1,2'",
        "model=b seed=1 x='1,2'",
    ]
    assert varied("model=glob(squeezenet1*)") == ["model=squeezenet1_0", "model=squeezenet1_1"]
    assert varied("compressor=choice(none,int4)", "+model.dropout=0.1,0.2")[-1] == "compressor=int4 +model.dropout=0.2"
    assert varied("num_steps=1") == ["num_steps=1"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["compressor=none,int5"], "none-int5|int5: .*compressor=int5"),
        (["modle=alexnet,squeezenet1_0"], "did you mean model"),
        (["compressor=none,none"], "names a value more than once"),
        (["model=glob(zzz*)"], "names nothing that there is"),
        (["seed=interval(0,1)"], "is no list of values"),
        (["compressor"], "is not of the form KEY=VALUE"),
        (["seed=0,-1"], "seed_-1: seed=-1 must be at least 0"),
        (["run_dir=a,b"], "--output says where"),
        (["overwrite=true"], "remove a run's folder"),
        (["resume=latest"], "it goes on by itself"),
        (["seed=1,2", "-n"], "put options before settings"),
    ],
)
def test_a_mistake_in_any_combination_is_said_before_one_is_trained(
    settings: list[str], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        sweep.plan(settings, 2, tmp_path)


def test_each_combination_is_launched_in_a_folder_of_its_own_and_goes_on_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["compressor=none,int4", "optimizer.learning_rate=0.1,0.2", "num_steps=3"]
    assert main(["sweep", "-n", "4", "--output", str(tmp_path), "--dry-run", *settings]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[2] == (
        "dtrain launch -n 4 compressor=int4 optimizer.learning_rate=0.1 num_steps=3 save_every=1min keep_checkpoints=1 "
        f"run_dir={tmp_path}/int4-learning_rate_0.1 resume=latest"
    )


def test_a_folder_of_any_name_reaches_the_run(tmp_path: Path) -> None:
    (one,) = sweep.plan(["num_steps=1"], 2, tmp_path / "l'été [a=b]")
    composed = read_request(one.arguments[3:]).composed
    assert composed is not None
    assert composed.run_dir == str(tmp_path / "l'été [a=b]" / "run")


def test_settings_of_checkpoints_are_the_user_s_where_given(tmp_path: Path) -> None:
    (one,) = sweep.plan(["save_every=5", "keep_checkpoints=2"], 2, tmp_path)
    assert [text for text in one.arguments if "save_every" in text or "keep" in text] == [
        "save_every=5",
        "keep_checkpoints=2",
    ]


def test_a_complete_run_is_done_and_an_interrupted_one_is_not(tmp_path: Path) -> None:
    hold_run(tmp_path / "none", "compressor=none", "num_steps=3")
    hold_run(tmp_path / "int4", "compressor=int4", "num_steps=3", complete=False)
    (tmp_path / "int8" / "ledger").mkdir(parents=True)  # killed before its first line
    planned = sweep.plan(["compressor=none,int4,int8,top_k", "num_steps=3"], 2, tmp_path)
    assert [one.is_done for one in planned] == [True, False, False, False]
    assert planned[0].line().startswith("# done: dtrain launch")


@pytest.mark.parametrize(
    ("settings", "ranks", "says"),
    [(["num_steps=4"], 2, "num_steps differ"), (["num_steps=3"], 4, "on 2 ranks")],
)
def test_a_run_with_other_settings_is_neither_taken_for_done_nor_replaced(
    settings: list[str], ranks: int, says: str, tmp_path: Path
) -> None:
    hold_run(tmp_path / "none", "compressor=none", "num_steps=3")
    with pytest.raises(ValueError, match=f"other settings .{says}"):
        sweep.plan(["compressor=none,int4", *settings], ranks, tmp_path)


def test_what_is_watched_of_a_run_may_differ(tmp_path: Path) -> None:
    hold_run(tmp_path / "none", "compressor=none", "observe.progress=false")
    assert sweep.plan(["compressor=none,int4"], 2, tmp_path)[0].is_done


def planned_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *codes: str) -> list[sweep.Planned]:
    """Combinations that are little programs in place of trainings; "0" completes its run."""
    script = tmp_path / "stand_in.py"
    script.write_text(
        "import json, pathlib, sys\n"
        "what, folder = sys.argv[1], pathlib.Path(sys.argv[2])\n"
        "folder.mkdir(parents=True, exist_ok=True)\n"
        "what == '0' and (folder / 'summary.json').write_text(json.dumps({'complete': True}))\n"
        "exec(what) if not what.isdigit() else sys.exit(int(what))\n"
    )

    def opened(command: list[str], **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, script, *command[3:]], **options)

    monkeypatch.setattr(sweep, "subprocess", stand_in(subprocess, Popen=opened))
    return [
        sweep.Planned(f"run{index}", tmp_path / f"run{index}", (code, str(tmp_path / f"run{index}")), False)
        for index, code in enumerate(codes)
    ]


def test_a_combination_that_fails_is_named_and_the_others_have_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = planned_programs(tmp_path, monkeypatch, "0", "2", "0")
    with (tmp_path / "out").open("w+") as output:
        outcome = sweep.run(planned, output)
    assert [one.name for one in outcome.complete] == ["run0", "run2"]
    assert outcome.failed == {"run1": 2}
    assert outcome.stopped is None
    assert capsys.readouterr().err == "dtrain sweep: run1 failed with exit code 2\n"
    assert "run2: begins (3 of 3)" in (tmp_path / "out").read_text()


def test_a_run_that_was_told_to_save_and_end_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = planned_programs(tmp_path, monkeypatch, "75", "0")
    with (tmp_path / "out").open("w+") as output:
        assert sweep.run(planned, output).stopped == 75
    assert not (tmp_path / "run1").exists()


def test_ctrl_c_has_the_run_saved_and_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is sent SIGTERM, for which it saves, whatever we were sent."""
    waits = (
        "import os, signal, time; "
        "signal.signal(signal.SIGTERM, lambda *_: ((folder / 'saved').touch(), os._exit(75))); "
        "os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    )
    before = signal.getsignal(signal.SIGINT)
    planned = planned_programs(tmp_path, monkeypatch, waits, "0")
    with (tmp_path / "out").open("w+") as output:
        outcome = sweep.run(planned, output)
    assert outcome.stopped == 130
    assert (tmp_path / "run0" / "saved").exists()
    assert not (tmp_path / "run1").exists()
    assert signal.getsignal(signal.SIGINT) is before
