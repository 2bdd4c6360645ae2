"""`python -m dtrain.meter`: what it reports is what the kernel saw, and the program is none the wiser.

The programs are in programs/ and know nothing of dtrain.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from bytes_on_lo import SET_UP
from programs import Ended, environment, on_ranks, run, under_torchrun

METER = ["-m", "dtrain.meter"]
PROGRAMS = Path(__file__).parent / "programs"
NAMESPACES = pytest.mark.skipif(
    os.geteuid() != 0 or any(shutil.which(tool) is None for tool in ("unshare", "ip")),
    reason="network namespaces need root, util-linux and iproute2",
)


def results(ended: Ended) -> list[str]:
    """What the ranks of a program print: its rank, and a digest of its results."""
    return sorted(re.findall(r"^rank \d+ [0-9a-f]{64}$", ended.stdout, re.MULTILINE))


def in_a_namespace(command: Sequence[str], folder: Path) -> tuple[Ended, int]:
    """The command in a network namespace of its own, and the bytes that lo transmitted there."""
    script = f'set -e\n{SET_UP}"$@"\ngrep lo: /proc/self/net/dev > lo.txt'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script, "sh", *command],
        cwd=folder,
        env=environment({"GLOO_SOCKET_IFNAME": "lo"}),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    ended = Ended(done.returncode, done.stdout, done.stderr).expect(0)
    return ended, int((folder / "lo.txt").read_text().split()[9])


STEPS = {"ddp": 20, "fsdp2": 20, "pipeline": 10, "subgroups": 10, "sparse": 10}
"""Enough for what starting costs, and the roll call, to be little beside them."""


@NAMESPACES
@pytest.mark.parametrize(
    ("name", "ranks"),
    [("ddp", 2), ("ddp", 4), ("fsdp2", 2), ("pipeline", 2), ("pipeline", 4), ("subgroups", 4), ("sparse", 3)],
)
def test_the_report_is_what_the_kernel_saw_and_results_are_bitwise_the_same(
    tmp_path: Path, name: str, ranks: int
) -> None:
    command = [str(PROGRAMS / f"{name}.py"), str(STEPS[name])]
    without = run(on_ranks(ranks, *command), tmp_path, env=environment({"GLOO_SOCKET_IFNAME": "lo"})).expect(0)
    metered = under_torchrun(ranks, *METER, "--json", "report.json", *command)
    ended, observed = in_a_namespace(metered, tmp_path)
    assert len(results(without)) == ranks
    assert results(ended) == results(without)
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["command"] == command
    assert figures["missing_ranks"] == []
    counted = figures["total_wire_bytes_all_ranks"]
    print(f"{name}, {ranks} ranks: counted {counted:,.0f}, observed {observed:,}: {observed / counted:.5f}")
    assert counted > 1e6
    assert observed / counted == pytest.approx(1.0, abs=0.01)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of subgroups.py on four ranks."""
    folder = tmp_path_factory.mktemp("figures")
    command = on_ranks(4, *METER, "--json", "report.json", "--nic", "lo", str(PROGRAMS / "subgroups.py"))
    ended = run(command, folder).expect(0)
    return {**json.loads((folder / "report.json").read_text()), "stderr": ended.stderr, "stdout": ended.stdout}


def test_every_breakdown_adds_up_to_the_same_bytes(figures: Any) -> None:
    total = figures["total_wire_bytes_all_ranks"]
    # all_reduces and an all_gather twice in each half, of two ranks; then all four
    assert total == 4 * 4 * 380_000 + 4 * 4 * 100_000 + 4 * 4 * 60_000 + 3 * 4 * 100_000
    for part in ("operations", "sizes", "groups", "purposes", "phases", "ranks"):
        assert sum(row["wire_bytes"] for row in figures[part]) == pytest.approx(total)
        assert sum(row["collectives"] for row in figures[part]) == figures["total_collectives_all_ranks"]


def test_groups_have_their_names_and_ranks(figures: Any) -> None:
    groups = {row["group"]: row["ranks"] for row in figures["groups"]}
    assert groups == {"default_pg": [0, 1, 2, 3], "half0": [0, 1], "half1": [2, 3]}


def test_sizes_are_powers_of_two_around_the_payload(figures: Any) -> None:
    rows = {(row["op"], row["from_bytes"]): row for row in figures["sizes"]}
    assert rows["all_to_all", 262_144]["payload_bytes"] == 4 * 320_000
    assert rows["all_to_all", 262_144]["below_bytes"] == 524_288


def test_times_and_bus_bandwidth_are_there(figures: Any) -> None:
    rows = {row["op"]: row for row in figures["operations"]}
    all_reduce = rows["all_reduce"]
    assert all_reduce["timed"] == all_reduce["collectives"] == 16
    assert all_reduce["bus_bytes_per_second"] == pytest.approx(all_reduce["wire_bytes"] / all_reduce["seconds"])
    for row in figures["ranks"]:
        assert 0 < row["under_way_seconds"] < row["program_seconds"]
        assert row["seconds"] > 0


def test_the_kernel_s_counters_stand_beside(figures: Any) -> None:
    (row,) = figures["nic"]
    assert row["interface"] == "lo"
    assert row["transmitted_bytes"] > figures["total_wire_bytes_all_ranks"]  # start-up, headers, other programs


def test_the_report_goes_to_standard_error_once(figures: Any) -> None:
    assert figures["stderr"].count("4 ranks sent") == 1
    assert "half1 (ranks 2, 3)" in figures["stderr"]
    assert len(figures["stdout"].splitlines()) == 4


# As python runs it

PLACE = """
import __main__, atexit, os, sys
print(sys.argv, sys.path[0], __name__, __file__, __package__, __doc__, vars(__main__) is globals(), __spec__ is None)
atexit.register(print, "at exit")
def end():
    how = sys.argv[1]
    if how == "3":
        sys.exit(3)
    if how == "text":
        sys.exit("gone wrong")
    if how == "error":
        raise KeyError("mine")
    if how == "ctrl-c":
        raise KeyboardInterrupt
    if how == "_exit":
        os._exit(5)
    if how == "signal":
        os.kill(os.getpid(), 15)
    if how == "fork":
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
end()
"""


NOTHING = "Processes that the program starts by itself (mp.spawn, Ray, Lightning's launcher) are not metered."
"""What a report of no collectives says."""


def as_python_would(command: Sequence[str], folder: Path) -> None:
    alone, metered = run([sys.executable, *command], folder), run([sys.executable, *METER, *command], folder)
    assert metered.code == alone.code
    assert metered.stdout == alone.stdout
    own = re.sub(r'  File "<frozen runpy>".*\n', "", alone.stderr)
    report = metered.stderr.removeprefix(own)
    assert report == "" or (report.startswith("1 rank sent 0 B in 0 collectives\n") and NOTHING in report), report
    assert metered.stderr.startswith(own)


@pytest.mark.parametrize("how", ["end", "3", "text", "error", "ctrl-c", "_exit", "signal", "fork"])
def test_it_ends_as_it_would_alone(tmp_path: Path, how: str) -> None:
    (tmp_path / "program.py").write_text(PLACE)
    as_python_would(["program.py", how, "--json", "not ours"], tmp_path)


@pytest.mark.parametrize("path", ["./folder/program.py", "link.py", "absolute"])
def test_it_is_found_where_python_finds_it(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "program.py").write_text(f"import neighbour\n{PLACE}")
    (tmp_path / "folder" / "neighbour.py").touch()
    (tmp_path / "link.py").symlink_to("folder/program.py")
    as_python_would([str(tmp_path / "folder" / "program.py") if path == "absolute" else path, "end"], tmp_path)


def test_a_module_and_a_package_run_as_by_python_m(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "__main__.py").write_text(f"from package import other\n{PLACE}")
    (tmp_path / "package" / "other.py").write_text(PLACE.replace("end()\n", ""))
    as_python_would(["-m", "package", "3"], tmp_path)
    as_python_would(["-m", "package.other", "-x"], tmp_path)
    as_python_would(["-m", "package", "error"], tmp_path)


def test_a_syntax_error_shows_as_by_python(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("print('first'\nx y")
    as_python_would(["program.py"], tmp_path)


def test_spawned_children_work_and_are_not_metered(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import multiprocessing as mp\n"
        "def child(): print('child', __name__, flush=True)\n"
        "if __name__ == '__main__':\n"
        "    for method in ('spawn', 'fork'):\n"
        "        process = mp.get_context(method).Process(target=child); process.start(); process.join()\n"
        "        assert process.exitcode == 0\n"
    )
    as_python_would(["program.py"], tmp_path)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_store_that_does_not_answer_ends_no_program(tmp_path: Path, rank: int) -> None:
    """A node may start later than the meter waits for it, and the program's own meeting waits longer."""
    (tmp_path / "program.py").write_text("print('ran')")
    (tmp_path / "hurried.py").write_text(
        "import sys, dtrain.meter.__main__, dtrain.meter.program_meter as meter\n"
        "from dtrain.meter.roll_call import job_store\n"
        "meter.job_store = lambda environ: job_store(environ, timeout_seconds=0.5)\n"
        "sys.exit(dtrain.meter.__main__.main())\n"
    )
    nobody = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    command = [sys.executable, "hurried.py", "--json", "report.json", "program.py"]
    ended = run(command, tmp_path, env=environment(nobody)).expect(0)
    assert ended.stdout == "ran\n"
    assert "dtrain: this rank reports for itself alone: " in ended.stderr
    assert "1 rank sent 0 B in 0 collectives" in ended.stderr
    assert (tmp_path / "report.json").exists() == (rank == 0)


ONE_STEP = """
import os, subprocess, sys, torch, torch.distributed as dist
def work(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    value = torch.ones(1000)
    dist.all_reduce(value)
    assert value[0] == 2
    dist.destroy_process_group()
"""


def test_ranks_that_the_program_starts_by_itself_are_missed_in_the_report(tmp_path: Path) -> None:
    """As Lightning's own launcher does it: the process that was started is rank 0, and starts the others."""
    (tmp_path / "program.py").write_text(
        f"{ONE_STEP}\n"
        "rank = int(os.environ.get('MINE', '0'))\n"
        "others = [] if rank else [subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, 'MINE': '1'})]\n"
        "work(rank, os.path.abspath('store'))\n"
        "sys.exit(sum(other.wait() for other in others))\n"
    )
    ended = run([sys.executable, *METER, "--json", "report.json", "program.py"], tmp_path).expect(0)
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["unmetered_ranks"] == 1
    assert figures["total_wire_bytes_all_ranks"] == 4000
    assert "1 rank sent 4.00 KB in 1 collectives\nwithout 1 rank of its groups. " in ended.stderr
    assert "call dtrain.meter.install() in each" in " ".join(ended.stderr.split())


def test_workers_that_are_spawned_meter_themselves_as_the_report_says(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        f"{ONE_STEP}\n"
        "def metered(rank, store):\n"
        "    import dtrain.meter\n"
        "    ledger = dtrain.meter.install()\n"
        "    work(rank, store)\n"
        "    sys.stdout.write(f'rank {rank} sent {ledger.total().wire_bytes:g}\\n')\n"
        "if __name__ == '__main__':\n"
        "    torch.multiprocessing.spawn(metered, (os.path.abspath('store'),), nprocs=2)\n"
    )
    alone = run([sys.executable, "program.py"], tmp_path).expect(0)
    assert sorted(alone.stdout.splitlines()) == ["rank 0 sent 4000", "rank 1 sent 4000"]
    metered = run([sys.executable, *METER, "program.py"], tmp_path).expect(0)
    assert sorted(metered.stdout.splitlines()) == ["rank 0 sent 4000", "rank 1 sent 4000"]
    assert "1 rank sent 0 B in 0 collectives" in metered.stderr
    assert NOTHING in metered.stderr


def test_a_call_that_cannot_be_counted_is_named_in_the_report_and_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import torch, torch.distributed as dist\n"
        "from dtrain.meter import c10d\n"
        "c10d.num_bytes = lambda tensors: 1 / 0\n"
        "dist.init_process_group('gloo')\n"
        "for _ in range(3): dist.all_reduce(torch.ones(1))\n"
        "dist.broadcast(torch.ones(1), 0)\n"
        "dist.destroy_process_group()\n"
    )
    ended = run(on_ranks(2, *METER, "--json", "report.json", "program.py"), tmp_path).expect(0)
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["uncounted_calls_all_ranks"] == 7  # a broadcast counts at its root
    assert figures["uncounted"] == [{"op": "all_reduce", "calls": 6}, {"op": "broadcast", "calls": 1}]
    assert ended.stderr.count("a call of all_reduce was not counted") == 2
    assert "ZeroDivisionError: division by zero" in ended.stderr
    assert "INCOMPLETE: without 6 calls of all_reduce, 1 call of broadcast" in ended.stderr


def test_an_exception_of_one_rank_comes_out_with_its_own_traceback(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo'); dist.all_reduce(torch.ones(1))\n"
        "if dist.get_rank() == 1: raise KeyError('mine')\n"
    )
    ended = run(under_torchrun(2, *METER, "program.py"), tmp_path).expect(1)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("[rank1]:")]
    assert "KeyError: 'mine'" in lines[-1]
    assert not [line for line in lines if "dtrain" in line or "runpy" in line]
    assert "does not answer" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nowhere.py"], "can't open nowhere.py: No such file"),
        (["-m", "nowhere.at.all"], "nowhere"),
        (["--nic", "eth99", "program.py"], "--nic eth99 does not exist"),
        (["--json", "no/such/folder.json", "program.py"], "no/such/folder.json"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(tmp_path: Path, arguments: list[str], part: str) -> None:
    (tmp_path / "program.py").write_text("print('ran')")
    ended = run([sys.executable, *METER, *arguments], tmp_path).expect(2)
    (line,) = ended.stderr.splitlines()
    assert line.startswith("dtrain: error: ")
    assert part in line
    assert ended.stdout == ""


def test_without_a_program_it_says_how(tmp_path: Path) -> None:
    ended = run([sys.executable, *METER, "--json", "x"], tmp_path).expect(2)
    assert "a script is missing, or -m and a module" in ended.stderr


def test_the_figures_of_ranks_that_left_before_come_too_and_missing_ones_are_named(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import os, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo'); dist.all_reduce(torch.ones(250_000)); dist.barrier()\n"
        "dist.destroy_process_group()\n"
        "if os.environ['RANK'] == '2': os._exit(0)\n"
    )
    ended = run(on_ranks(3, *METER, "--json", "report.json", "program.py"), tmp_path).expect(0)
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["missing_ranks"] == [2]
    assert "without rank 2: no figures came" in ended.stderr
    assert [row["rank"] for row in figures["ranks"]] == [0, 1]
    assert figures["total_wire_bytes_all_ranks"] == pytest.approx(2 * 4 / 3 * 1e6)
