"""`python -m dtrain.meter` while a program runs: --every, --steps, --trace, and SIGTERM."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from programs import Ended, finish, on_ranks, run, start, under_torchrun

from dtrain.exchange import Op
from dtrain.meter.ledger import Purpose
from dtrain.meter.trace import read_trace

METER = ["-m", "dtrain.meter"]
PROGRAM = """
import sys, time, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
steps, pause = int(sys.argv[1]), float(sys.argv[2])
dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(1000, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for step in range(steps):
    optimizer.zero_grad()
    time.sleep(pause)
    model(torch.ones(1, 1000)).sum().backward()
    optimizer.step()
    print(f"step {step} of rank {dist.get_rank()}\\n", end="", flush=True)
dist.barrier()
print(f"weights {sum(p.sum() for p in model.parameters()):.6f}\\n", end="", flush=True)
del model, optimizer  # if the model outlives its group, torch may wait for ever for a gloo thread that wants the GIL
dist.destroy_process_group()
"""
STEP_BYTES = 4 * 10_010
"""What one rank of two sends in a step."""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def test_a_line_tells_every_so_often_what_all_ranks_sent(program: Path) -> None:
    ended = run(on_ranks(2, *METER, "--every", "1s", "program.py", "40", "0.1"), program).expect(0)
    lines = [line for line in ended.stderr.splitlines() if re.match(r"dtrain: \d+ s: ", line)]
    told = [re.search(r"2 ranks sent ([\d.]+) (KB|MB) in ([\d,]+) collectives \(gradient \d+%", line) for line in lines]
    sent = [float(match[1]) * {"KB": 1e3, "MB": 1e6}[match[2]] for match in told if match]
    assert len(sent) >= 3
    assert sent == sorted(sent)
    assert 5 * 2 * STEP_BYTES < sent[-1] < 41 * 2 * STEP_BYTES
    steps = [int(match[1]) for line in lines if (match := re.search(r"; (\d+) steps, \d+ ms each of late", line))]
    assert steps == sorted(steps)
    assert steps[-1] > 10
    assert ended.stderr.count("2 ranks sent 3.") >= 1  # at the end the tables, as ever
    assert "operation" in ended.stderr


def test_after_some_steps_it_reports_and_the_program_goes_on_unmetered(program: Path) -> None:
    alone = run(on_ranks(2, "program.py", "60", "0.05"), program).expect(0)
    command = on_ranks(2, *METER, "--steps", "5", "--json", "report.json", "program.py", "60", "0.05")
    ended = run(command, program).expect(0)
    assert sorted(ended.stdout.splitlines()) == sorted(alone.stdout.splitlines())
    figures = json.loads((program / "report.json").read_text())
    assert figures["steps"] == 5
    assert figures["missing_ranks"] == []
    gradient = next(row for row in figures["purposes"] if row["purpose"] == "gradient")
    assert gradient["wire_bytes"] == 6 * 2 * STEP_BYTES  # the optimizer's first step begins the first step
    assert ended.stderr.count("2 ranks sent") == 1
    assert "in 5 steps and what came before" in ended.stderr
    assert "overridden" not in ended.stderr


def test_what_is_stopped_records_no_more_and_another_ledger_can(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import torch, torch.distributed as dist\n"
        "from dtrain.meter import c10d, install\n"
        "ledger = install()\n"
        "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
        "for _ in range(3): dist.all_reduce(torch.ones(1))\n"
        "c10d.stop()\n"
        "for _ in range(4): dist.all_reduce(torch.ones(1))\n"
        "print(ledger.total().count, c10d.installed_ledger())\n"
        "another = install()\n"
        "dist.all_reduce(torch.ones(1))\n"
        "print(ledger.total().count, another.total().count)\n"
        "dist.destroy_process_group()\n"
    )
    ended = run([sys.executable, "program.py"], tmp_path).expect(0)
    assert ended.stdout == "3 None\n3 1\n"


def test_the_report_after_some_steps_is_there_while_the_program_goes_on(program: Path) -> None:
    process = start([sys.executable, *METER, "--steps", "2", "--json", "report.json", "alone.py"], program)
    (program / "alone.py").write_text(
        "import time, torch\n"
        "optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])\n"
        "for _ in range(3): optimizer.step()\n"
        "time.sleep(600)\n"
    )
    with ended_at_last(process):
        await_content(program / "report.json")
        assert json.loads((program / "report.json").read_text())["steps"] == 2
        assert process.poll() is None


def test_a_program_that_ends_before_reports_what_there_was_and_says_so(program: Path) -> None:
    command = on_ranks(2, *METER, "--steps", "9", "--trace", "run.json", "program.py", "4", "0")
    ended = run(command, program).expect(0)
    assert "dtrain: the program ended after 3 steps, before 9" in ended.stderr
    assert "in 3 steps and what came before" in ended.stderr
    assert len(read_trace(program / "run.json").steps) == 3


def test_a_trace_has_each_step_s_collectives_with_their_times(program: Path) -> None:
    run(on_ranks(2, *METER, "--trace", "run.json", "--steps", "20", "program.py", "30", "0.05"), program).expect(0)
    trace = read_trace(program / "run.json")
    assert (trace.world_size, trace.backend, trace.device, trace.num_threads, trace.ranks_on_host) == (
        *(2, "gloo", "cpu", 1),
        2,
    )
    assert trace.parameters == ((10_000, "float32"), (10, "float32"))
    assert (trace.optimizer, trace.momentum, trace.betas) == ("SGD", 0.9, None)
    assert len(trace.steps) == 20
    for step in trace.steps[1:]:  # in the first DDP says how it arranges its buckets from then on
        (collective,) = step.collectives
        assert (collective.op, collective.payload_bytes, collective.dtype) == (Op.ALL_REDUCE, STEP_BYTES, "float32")
        assert (collective.group_size, collective.purpose) == (2, Purpose.GRADIENT)
        assert 0.05 < collective.start < step.seconds < 5  # after what the program slept
        assert collective.end is not None
        assert collective.start < collective.end


def test_of_two_optimizers_the_first_to_step_tells_steps_and_both_have_parameters(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import torch\n"
        "from torch.optim import AdamW, SGD\n"
        "first, second = torch.nn.Linear(3, 2), torch.nn.Linear(5, 1, bias=False).double()\n"
        "second.weight.data = second.weight.data\n"
        "optimizers = [AdamW(first.parameters(), betas=(0.8, 0.9)), SGD(second.parameters(), lr=0.1)]\n"
        "for _ in range(5):\n"
        "    for optimizer in optimizers: optimizer.step()\n"
    )
    run([sys.executable, *METER, "--trace", "run.json", "--steps", "4", "program.py"], tmp_path).expect(0)
    trace = read_trace(tmp_path / "run.json")
    assert len(trace.steps) == 4
    assert trace.parameters == ((6, "float32"), (2, "float32"), (5, "float64"))
    assert (trace.optimizer, trace.betas) == ("AdamW", (0.8, 0.9))
    assert (trace.num_parameters, trace.parameter_bytes) == (13, 32 + 40)


def test_a_compiled_step_of_the_optimizer_counts_too(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import torch\n"
        "parameter = torch.nn.Parameter(torch.ones(4))\n"
        "optimizer = torch.optim.Adam([parameter])\n"
        "@torch.compile(backend='eager')\n"
        "def step(): optimizer.step()\n"
        "for _ in range(7):\n"
        "    parameter.grad = torch.ones(4)\n"
        "    step()\n"
    )
    command = [sys.executable, *METER, "--trace", "run.json", "--steps", "5", "program.py"]
    ended = run(command, tmp_path).expect(0)
    assert "does not know how to trace" not in ended.stderr
    assert len(read_trace(tmp_path / "run.json").steps) == 5


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--every", "0.5s"], "--every 0.5s: give a time such as 30s, 5m or 1h, at least 1s"),
        (["--every", "soon"], "--every soon: give a time"),
        (["--steps", "0"], "--steps 0: give a number of steps from 1 on"),
        (["--trace", "run.json"], "--trace takes --steps N as well, from 1 to 1,000"),
        (["--trace", "run.json", "--steps", "5000"], "--trace takes --steps N as well"),
        (["--trace", "no/such/run.json", "--steps", "5"], "no/such/run.json"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path: Path, arguments: list[str], part: str) -> None:
    (tmp_path / "program.py").write_text("print('ran')")
    ended = run([sys.executable, *METER, *arguments, "program.py"], tmp_path).expect(2)
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"dtrain: error: {part}") or part in line
    assert ended.stdout == ""


# SIGTERM


@contextmanager
def ended_at_last(process: subprocess.Popen[str]) -> Iterator[None]:
    """Nothing of it is left, whatever becomes of the test."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def await_content(path: Path, seconds: float = 120.0) -> str:
    deadline = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return path.read_text()


def terminated(command: list[str], folder: Path, ready: str) -> tuple[Ended, float]:
    """How it ends, and after how many seconds, when it is sent SIGTERM once the file `ready` has content."""
    process = start(command, folder)
    try:
        await_content(folder / ready)
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        return finish(process, 60), time.monotonic() - sent
    except BaseException:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        raise


WAITING = {
    "in python": "while True: time.sleep(0.01)",
    "in a collective": "dist.all_reduce(torch.ones(1)) if dist.get_rank() == 0 else dist.recv(torch.ones(1), 0)",
}


@pytest.mark.parametrize("where", WAITING)
def test_sigterm_ends_it_as_ever_and_the_report_is_whole(tmp_path: Path, where: str) -> None:
    (tmp_path / "program.py").write_text(
        "import atexit, time, torch, torch.distributed as dist\n"
        "from pathlib import Path\n"
        "atexit.register(print, 'at exit')\n"
        "dist.init_process_group('gloo')\n"
        "dist.all_reduce(torch.ones(1000))\n"
        "dist.barrier()\n"
        "Path('ready').write_text('yes')\n"
        f"{WAITING[where]}\n"
        "print('went on', flush=True)\n"
    )
    ended, took = terminated(on_ranks(2, *METER, "--json", "report.json", "program.py"), tmp_path, "ready")
    assert ended.code == 128 + signal.SIGTERM
    assert ended.stdout == ""  # neither went on, nor came to an exit of its own
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["missing_ranks"] == []
    assert figures["total_wire_bytes_all_ranks"] >= 2 * 4000
    assert ended.stderr.count("2 ranks sent") == 1
    assert took < 10


def test_a_handler_of_the_program_s_own_is_the_one_that_counts(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        "def stop(number, frame):\n"
        "    came = time.monotonic()\n"
        "    if callable(before): before(number, frame)\n"  # as if it were one that did something
        "    print('at once' if time.monotonic() - came < 0.5 else 'late')\n"
        "    sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "Path('ready').write_text('yes')\n"
        "while True: time.sleep(0.01)\n"
    )
    command = [sys.executable, *METER, "--json", "report.json", "program.py"]
    ended, _ = terminated(command, tmp_path, "ready")
    assert (ended.code, ended.stdout) == (7, "at once\n")
    assert json.loads((tmp_path / "report.json").read_text())["world_size"] == 1
    assert ended.stderr.count("1 rank sent") == 1


def test_a_program_that_puts_the_handler_back_and_sends_sigterm_again_ends_by_it(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import os, signal, time\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        "def stop(number, frame):\n"
        "    print('saved', flush=True)\n"
        "    signal.signal(signal.SIGTERM, before)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('went on', flush=True)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(600)\n"
    )
    ended = run([sys.executable, *METER, "--json", "report.json", "program.py"], tmp_path)
    assert (ended.code, ended.stdout) == (-signal.SIGTERM, "saved\n")
    assert json.loads((tmp_path / "report.json").read_text())["world_size"] == 1


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_sigterm_to_a_child_ends_the_child_alone(tmp_path: Path, start_method: str) -> None:
    (tmp_path / "program.py").write_text(
        "import multiprocessing, time\n"
        "if __name__ == '__main__':\n"
        f"    context = multiprocessing.get_context('{start_method}')\n"
        "    child = context.Process(target=time.sleep, args=(600,))\n"
        "    child.start()\n"
        "    time.sleep(1)\n"
        "    child.terminate()\n"
        "    child.join()\n"
        "    time.sleep(1)\n"
        "    print('child', child.exitcode)\n"
    )
    ended = run([sys.executable, *METER, "program.py"], tmp_path).expect(0)
    assert ended.stdout == "child -15\n"
    assert ended.stderr.count("1 rank sent") == 1


def test_a_process_that_ignores_sigterm_goes_on_to_do_so(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import os; os.kill(os.getpid(), 15); print('went on')")
    ignoring = "import os, signal, sys; signal.signal(15, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", ignoring, sys.executable, *METER, "program.py"]
    assert run(command, tmp_path).expect(0).stdout == "went on\n"


def test_a_handler_that_was_there_before_is_called_after_the_report(tmp_path: Path) -> None:
    (tmp_path / "before.py").write_text(
        "import signal, sys, dtrain.meter.__main__\n"
        "def before(number, frame):\n"
        "    print('before', flush=True)\n"
        "    sys.exit(9)\n"
        "signal.signal(signal.SIGTERM, before)\n"
        "sys.exit(dtrain.meter.__main__.main())\n"
    )
    (tmp_path / "program.py").write_text("import os, time; os.kill(os.getpid(), 15); time.sleep(600)")
    ended = run([sys.executable, "before.py", "--json", "report.json", "program.py"], tmp_path).expect(9)
    assert ended.stdout == "before\n"
    assert ended.stderr.count("1 rank sent") == 1
    assert json.loads((tmp_path / "report.json").read_text())["world_size"] == 1


def test_under_torchrun_a_job_that_is_ended_reports_and_leaves_its_trace(program: Path) -> None:
    options = ["--json", "report.json", "--trace", "run.json", "--steps", "500", "--every", "1s"]
    process = start(under_torchrun(2, *METER, *options, "program.py", "100000", "0.05"), program)
    with ended_at_last(process):
        assert process.stdout is not None
        assert any("step 10 of rank" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        figures = json.loads((program / "report.json").read_text())
        assert figures["missing_ranks"] == []
        assert figures["steps"] >= 9
        assert len(read_trace(program / "run.json").steps) >= 9
