"""What a user gets from a training run, of one process and of two ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from programs import dtrain_command, on_ranks, read_summary, run, train_command
from safetensors import safe_open
from safetensors.torch import load_file

pytestmark = pytest.mark.timeout(600)

PARAMETERS = {10: 727_626, 1000: 1_235_496}  # of SqueezeNet 1.1, by classes
SUMMARY_KEYS = {
    "run",
    "model",
    "variant",
    "num_parameters",
    "world_size",
    "backend",
    "compressor",
    "codec",
    "num_steps",
    "batch_size_per_rank",
    "grad_bytes",
    "payload_bytes_per_step",
    "wire_bytes_per_step",
    "nic_bytes_per_step",
    "init_wire_bytes",
    "saving_vs_fp32",
    "saving_vs_fp16",
    "accuracy",
    "loss",
    "step_seconds_median",
    "exposed_comm_seconds_median",
    "codec_seconds_median",
    "total_wire_bytes_all_ranks",
    "seed",
    "versions",
    "complete",
}
RUNS: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "two ranks": (2, ("save_every=3", "log_every=2")),
    "the same again": (2, ()),
    "without overlap": (2, ("overlap=false",)),
    "without the meter": (2, ("observe.meter=false",)),
    "another seed": (2, ("seed=6",)),
    "one rank": (None, ("observe.profile=true", "num_steps=10")),
    "fp16": (2, ("compressor=fp16",)),
}

Runs = Callable[[str], Path]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A run directory by its name in RUNS; each is made once."""
    folder = tmp_path_factory.mktemp("runs")

    def of(name: str) -> Path:
        path = folder / name
        if not path.exists():
            ranks, settings = RUNS[name]
            own = {setting.partition("=")[0] for setting in settings}
            common = ["seed=5", "num_steps=6", "batch_size=8", f"run_dir={name.replace(' ', '-')}"]
            common = [setting for setting in common if setting.partition("=")[0] not in own]
            done = run(train_command(*common, *settings, ranks=ranks), folder).expect(0)
            (folder / name.replace(" ", "-")).rename(path)
            (path / "stdout.txt").write_text(done.stdout)
            (path / "stderr.txt").write_text(done.stderr)
        return path

    return of


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def model_bytes(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


# The summary and the other files


@pytest.mark.parametrize("name", ["two ranks", "one rank"])
def test_the_summary_has_every_key_of_the_design_and_is_complete(run_dir: Runs, name: str) -> None:
    summary = read_summary(run_dir(name))
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["complete"] is True
    assert (summary["model"], summary["compressor"], summary["seed"]) == ("squeezenet1_1", "none", 5)
    assert summary["versions"].keys() >= {"python", "torch", "dtrain"}
    assert 0.0 <= summary["accuracy"] <= 1.0
    assert summary["loss"] > 0


def test_payload_is_exactly_4_bytes_a_parameter(run_dir: Runs) -> None:
    summary = read_summary(run_dir("two ranks"))
    assert summary["num_parameters"] == PARAMETERS[10]
    assert summary["payload_bytes_per_step"] == summary["grad_bytes"] == 4 * PARAMETERS[10]
    assert summary["wire_bytes_per_step"] == 4 * PARAMETERS[10]  # 2S(n-1)/n at n = 2
    assert (summary["saving_vs_fp32"], summary["saving_vs_fp16"]) == (1.0, 0.5)
    assert (summary["num_steps"], summary["world_size"], summary["batch_size_per_rank"]) == (6, 2, 8)


def test_fp16_halves_it(run_dir: Runs) -> None:
    summary = read_summary(run_dir("fp16"))
    assert summary["payload_bytes_per_step"] == 2 * PARAMETERS[10]
    assert (summary["saving_vs_fp32"], summary["saving_vs_fp16"]) == (2.0, 1.0)
    assert summary["compressor"] == "fp16"


def test_one_worker_sends_nothing(run_dir: Runs) -> None:
    summary = read_summary(run_dir("one rank"))
    assert summary["payload_bytes_per_step"] == 4 * PARAMETERS[10]
    assert summary["wire_bytes_per_step"] == summary["total_wire_bytes_all_ranks"] == summary["init_wire_bytes"] == 0
    assert (summary["saving_vs_fp32"], summary["saving_vs_fp16"]) == (None, None)
    assert summary["world_size"] == 1


def test_start_up_and_the_total_have_keys_of_their_own(run_dir: Runs) -> None:
    """At start ranks tell each other where results go, and that they have built the same model: a few bytes."""
    summary = read_summary(run_dir("two ranks"))
    assert 0 < summary["init_wire_bytes"] < 5000
    split = summary["wire_bytes_by_phase_and_purpose"]
    assert split["train/gradient"] == 6 * 4 * PARAMETERS[10]
    assert "init/parameters" not in split
    ranks = [lines(run_dir("two ranks") / "ledger" / f"rank{rank}.jsonl") for rank in range(2)]
    recorded = sum(entry["wire_bytes"] for rank in ranks for record in rank for entry in record["entries"])
    assert sum(split.values()) < recorded <= summary["total_wire_bytes_all_ranks"]
    assert summary["total_wire_bytes_all_ranks"] - recorded <= summary["init_wire_bytes"]


def test_the_ledger_of_each_rank_has_a_record_for_each_step(run_dir: Runs) -> None:
    for rank in range(2):
        records = lines(run_dir("two ranks") / "ledger" / f"rank{rank}.jsonl")
        steps = [record for record in records if record["step"] is not None]
        assert [record["step"] for record in steps] == list(range(6))
        for record in steps:
            gradients = [e for e in record["entries"] if e["purpose"] == "gradient"]
            assert sum(e["payload_bytes"] for e in gradients) == 4 * PARAMETERS[10]
            assert all(e["phase"] == "train" and e["seconds"] > 0 for e in gradients)
            assert record["times"]["step"] > 0
            assert record["times"]["exposed_comm"] <= record["times"]["step"]


def test_metrics_are_logged_at_the_steps_asked_for(run_dir: Runs) -> None:
    metrics = lines(run_dir("two ranks") / "metrics.jsonl")
    assert [m["step"] for m in metrics if m["kind"] == "train"] == [2, 4, 6]
    assert [m["step"] for m in metrics if m["kind"] == "eval"] == [6]
    assert metrics[-1]["num_images"] == 359  # every test image once over both ranks
    final = read_summary(run_dir("two ranks"))
    assert (metrics[-1]["accuracy"], metrics[-1]["loss"]) == (final["accuracy"], final["loss"])


def test_the_resolved_configuration_and_the_environment_are_kept(run_dir: Runs) -> None:
    config = yaml.safe_load((run_dir("two ranks") / "config.yaml").read_text())
    assert (config["seed"], config["batch_size"], config["model"]["name"]) == (5, 8, "squeezenet1_1")
    assert config["data"]["image_size"] == 32
    environment = json.loads((run_dir("two ranks") / "environment.json").read_text())
    assert environment["launch"]["launcher"] == "torchrun"
    assert environment["launch"]["world_size"] == 2
    assert json.loads((run_dir("one rank") / "environment.json").read_text())["launch"]["launcher"] == "none"


def test_progress_is_plain_lines_from_rank_0_without_a_terminal(run_dir: Runs) -> None:
    output = (run_dir("two ranks") / "stdout.txt").read_text().splitlines()
    assert [line.split()[1] for line in output if line.startswith("step ")] == ["2/6", "4/6", "6/6"]
    assert sum(" left " in line and "MB/step" in line and "loss" in line for line in output) == 3
    assert sum(line.startswith("test after step 6") for line in output) == 1
    assert sum("results in" in line for line in output) == 1
    assert "\x1b" not in "".join(output)
    assert "Traceback" not in (run_dir("two ranks") / "stderr.txt").read_text()


def test_only_rank_0_writes_but_for_the_ledgers(run_dir: Runs) -> None:
    names = {path.relative_to(run_dir("two ranks")).parts[0] for path in run_dir("two ranks").rglob("*")}
    expected = "checkpoints config.yaml environment.json ledger metrics.jsonl model.safetensors summary.json"
    assert names == {*expected.split(), "stdout.txt", "stderr.txt"}
    assert {path.name for path in (run_dir("two ranks") / "ledger").iterdir()} == {"rank0.jsonl", "rank1.jsonl"}


def test_models_are_saved_along_the_way_and_the_last_is_the_final_one(run_dir: Runs) -> None:
    checkpoints = run_dir("two ranks") / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000003", "step-000006"]
    last, final = (
        load_file(checkpoints / "step-000006" / "model.safetensors"),
        load_file(run_dir("two ranks") / "model.safetensors"),
    )
    assert all(torch.equal(last[name], final[name]) for name in final)
    earlier = load_file(checkpoints / "step-000003" / "model.safetensors")
    assert not all(torch.equal(earlier[name], final[name]) for name in final)


def test_the_model_carries_what_builds_it_again(run_dir: Runs) -> None:
    with safe_open(run_dir("two ranks") / "model.safetensors", framework="pt") as file:
        description = json.loads(file.metadata()["dtrain"])
    assert description["model"]["name"] == "squeezenet1_1"
    assert description["model"]["num_classes"] == 10
    assert description["step"] == 6


def test_a_profile_is_a_trace_of_training_steps(run_dir: Runs) -> None:
    trace = json.loads((run_dir("one rank") / "trace.json").read_text())
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert any("conv" in name for name in names)
    assert not (run_dir("two ranks") / "trace.json").exists()


# Determinism


def test_the_same_seed_gives_bitwise_the_same_model(run_dir: Runs) -> None:
    assert model_bytes(run_dir("two ranks")) == model_bytes(run_dir("the same again"))


def test_overlapped_or_not_gives_bitwise_the_same_model(run_dir: Runs) -> None:
    assert model_bytes(run_dir("two ranks")) == model_bytes(run_dir("without overlap"))


def test_metered_or_not_gives_bitwise_the_same_model(run_dir: Runs) -> None:
    assert model_bytes(run_dir("two ranks")) == model_bytes(run_dir("without the meter"))
    unmetered = read_summary(run_dir("without the meter"))
    assert unmetered["complete"] is True
    assert unmetered["payload_bytes_per_step"] is unmetered["total_wire_bytes_all_ranks"] is None


def test_another_seed_gives_another_model(run_dir: Runs) -> None:
    assert model_bytes(run_dir("two ranks")) != model_bytes(run_dir("another seed"))


# What is done with a run


def test_evaluate_reproduces_the_run_s_final_accuracy(run_dir: Runs, tmp_path: Path) -> None:
    model = str(run_dir("two ranks") / "model.safetensors")
    scored = run(dtrain_command("evaluate", model, "--json"), tmp_path).expect(0).json
    summary = read_summary(run_dir("two ranks"))
    assert scored["accuracy"] == summary["accuracy"]
    assert scored["loss"] == pytest.approx(summary["loss"], rel=1e-5)
    assert scored["num_images"] == 359
    text = run(dtrain_command("evaluate", model), tmp_path).expect(0).stdout
    assert f"accuracy {summary['accuracy']:.2%}" in text


def test_a_run_starts_from_given_weights(run_dir: Runs, tmp_path: Path) -> None:
    weights = run_dir("two ranks") / "model.safetensors"
    run(
        train_command(
            f"init_weights={weights}", "num_steps=1", "optimizer.learning_rate=1e-30", "run_dir=run", "batch_size=8"
        ),
        tmp_path,
    ).expect(0)
    assert read_summary(tmp_path / "run")["accuracy"] == read_summary(run_dir("two ranks"))["accuracy"]
    started, given = load_file(tmp_path / "run" / "model.safetensors"), load_file(weights)
    assert all(torch.allclose(started[name], given[name], rtol=0, atol=1e-25) for name in given)


def test_compare_and_claims_read_runs(run_dir: Runs, tmp_path: Path) -> None:
    runs = [str(run_dir("two ranks")), str(run_dir("fp16"))]
    compared = run(dtrain_command("compare", *runs, "--json"), tmp_path).expect(0)
    assert "squeezenet1_1" in compared.stdout
    assert json.loads(compared.stdout)
    table = run(dtrain_command("compare", *runs), tmp_path).expect(0).stdout
    assert "fp16" in table
    claims = run(dtrain_command("claims", *runs, "--json"), tmp_path).expect(0)
    assert json.loads(claims.stdout)
    assert "not measured" in run(dtrain_command("claims", *runs), tmp_path).expect(0).stdout


def test_report_is_one_page_that_needs_no_network(run_dir: Runs, tmp_path: Path) -> None:
    done = run(dtrain_command("report", str(run_dir("two ranks")), "--output", "page.html"), tmp_path).expect(0)
    page = (tmp_path / "page.html").read_text()
    assert "page.html" in done.stdout
    assert "<svg" in page
    assert not [kind for kind in ('src="http', 'href="http', "@import", "url(http") if kind in page]


def test_a_run_is_never_replaced_unasked(run_dir: Runs, tmp_path: Path) -> None:
    settings = ["num_steps=1", "batch_size=8", "data.num_workers=0", "run_dir=run"]
    run(train_command(*settings), tmp_path).expect(0)
    before = (tmp_path / "run" / "summary.json").read_bytes()
    refused = run(train_command(*settings), tmp_path).expect(2)
    assert "add overwrite=true" in refused.stderr
    assert (tmp_path / "run" / "summary.json").read_bytes() == before
    run(train_command(*settings, "seed=9", "overwrite=true"), tmp_path).expect(0)
    assert read_summary(tmp_path / "run")["seed"] == 9


def test_a_checkpoint_inside_the_run_directory_is_not_deleted_before_it_is_resumed(run_dir: Runs) -> None:
    path = run_dir("two ranks")
    checkpoint = path / "checkpoints" / "step-000003"
    refused = run(train_command(f"resume={checkpoint}", f"run_dir={path}", "overwrite=true", "num_steps=6"), path)
    assert "choose another run_dir" in refused.expect(2).stderr
    assert (checkpoint / "manifest.json").exists()


def test_a_rank_may_have_no_image_in_the_last_step_of_an_epoch(tmp_path: Path) -> None:
    data = ["data=synthetic", "data.num_train_images=9", "data.num_test_images=3"]
    settings = [*data, "batch_size=4", "num_epochs=2", "run_dir=run", "observe.progress=false"]
    run(train_command(*settings, ranks=2), tmp_path).expect(0)
    assert (read_summary(tmp_path / "run")["num_steps"], read_summary(tmp_path / "run")["complete"]) == (4, True)


def test_steps_that_are_not_finite_are_skipped_when_asked(tmp_path: Path) -> None:
    settings = ["optimizer.learning_rate=1e30", "on_nonfinite=skip", "num_steps=3", "batch_size=4", "run_dir=run"]
    done = run(train_command(*settings), tmp_path).expect(0)
    skipped = [line for line in done.stdout.splitlines() if line.startswith("skipped a step: the gradient of ")]
    assert [line.rpartition(" ")[2] for line in skipped] == ["1", "2"]


def test_the_default_run_directory_says_what_was_run(tmp_path: Path) -> None:
    run(train_command("num_steps=1", "batch_size=8", "observe.progress=false"), tmp_path).expect(0)
    (path,) = (tmp_path / "runs").iterdir()
    assert path.name.startswith("squeezenet1_1-none-")
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]  # nothing of Hydra's


def test_no_thread_of_the_backend_is_left_when_the_interpreter_exits(tmp_path: Path) -> None:
    """One that calls into Python then, to let go of a tensor say, aborts the process, now and then."""
    program = tmp_path / "program.py"
    program.write_text(
        "import atexit, glob, os, pathlib, sys\n"
        "def report():\n"
        "    names = sorted(open(path).read().strip() for path in glob.glob('/proc/self/task/*/comm'))\n"
        "    pathlib.Path(f'left{os.environ[\"RANK\"]}').write_text(' '.join(names))\n"
        "atexit.register(report)\n"
        "from dtrain.train.entry import main\n"
        "sys.exit(main())\n"
    )
    settings = ["num_steps=2", "batch_size=4", "run_dir=run", "observe.progress=false"]
    run(on_ranks(2, str(program), *settings), tmp_path).expect()
    left = [(tmp_path / f"left{rank}").read_text() for rank in range(2)]
    assert not any("gloo" in names for names in left), left
