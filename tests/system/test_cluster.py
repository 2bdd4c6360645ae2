"""`dtrain cluster run`: real namespaces, real links, and nothing left behind however it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("pyroute2", reason="pip install 'dtrain[cluster]'")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from cluster_rate import measure
from programs import Ended, dtrain_command, environment, finish, read_summary, run, start, train_command

from dtrain.cluster.namespaces import INTERFACE, Node, network

TOOLS = ("setpriv", "nsenter", "unshare", "mount")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not found: install util-linux"),
]

PROGRAM = str(Path(__file__).parent / "programs" / "all_reduce.py")
SLEEPER = "import sys, time; print('up', *sys.argv[1:], flush=True); time.sleep(600)"


def cluster(*arguments: str) -> list[str]:
    return dtrain_command("cluster", "run", *arguments)


def namespaces(output: str) -> set[str]:
    return set(re.findall(r"net:\[\d+\]", output))


def namespace_of(pid: int | str) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


def users(namespace: str) -> list[str]:
    """The processes that run in a network namespace or hold it open."""
    links = [*Path("/proc").glob("[0-9]*/ns/net"), *Path("/proc").glob("[0-9]*/fd/*")]
    found = []
    for link in links:
        try:
            if str(link.readlink()) == namespace:
                found.append(str(link))
        except OSError:  # ended or closed meanwhile
            continue
    return found


def processes_with(word: str) -> list[int]:
    """The processes that have this word among their arguments."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def assert_nothing_is_left(word: str, *names: str) -> None:
    deadline = time.monotonic() + 10
    while (left := [*processes_with(word), *(user for name in names for user in users(name))]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert left == []


@pytest.fixture
def host() -> Iterator[None]:
    """The host's own interfaces and named namespaces must not change; those of Docker's containers come and go."""

    def state() -> tuple[str, list[str]]:
        found = re.findall(r"^\s*(\S+):", Path("/proc/net/dev").read_text(), re.MULTILINE)
        interfaces = [name for name in found if not re.fullmatch(r"docker\d+|br-[0-9a-f]{12}|veth[0-9a-f]{7}", name)]
        named = Path("/run/netns")
        return " ".join(interfaces), sorted(path.name for path in named.iterdir()) if named.exists() else []

    before = state()
    yield
    assert state() == before


def test_the_nodes_of_a_plain_program_reach_each_other_and_the_table_has_their_bytes(
    tmp_path: Path, host: None
) -> None:
    ended = run(cluster("--nodes", "3", "--rate", "200mbit", "--", sys.executable, PROGRAM), tmp_path).expect(0)
    for node in range(3):
        assert f"[node{node}] rank {node} sum 3 on node{node} " in ended.stdout
    names = namespaces(ended.stdout)
    assert len(names) == 3
    rows = re.findall(r"│\s+(\d+) │ (10\.0\.0\.\d+) │\s+([\d,]+) │\s+([\d,]+) │", ended.stdout)
    assert [(int(node), address) for node, address, *_ in rows] == [(n, f"10.0.0.{n + 1}") for n in range(3)]
    for _, _, sent, received in rows:
        # the ring's 4/3 MB and its headers; rendezvous is in it too
        assert 1.04 * 4e6 / 3 < int(sent.replace(",", "")) < 1.2 * 4e6 / 3
        assert 1.04 * 4e6 / 3 < int(received.replace(",", "")) < 1.2 * 4e6 / 3
    assert_nothing_is_left(PROGRAM, *names)


def test_torchrun_needs_no_rendezvous_arguments(tmp_path: Path, host: None) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", PROGRAM]
    ended = run(cluster("--nodes", "2", "--json", "--", *torchrun), tmp_path).expect(0)
    assert ended.json["exit_code"] == 0
    assert ended.json["rate_bits_per_second"] is None
    assert [node["node"] for node in ended.json["nodes"]] == [0, 1]
    assert all(node["sent_bytes"] > 1e6 for node in ended.json["nodes"])
    for rank in range(4):
        assert f"[node{rank // 2}] rank {rank} sum 4 on node{rank // 2} " in ended.stderr
    assert "socket.cpp" not in ended.stderr  # no warning of torch's that it cannot tell its peers' names
    assert_nothing_is_left(PROGRAM, *namespaces(ended.stderr))


def test_the_link_is_as_slow_as_asked(tmp_path: Path) -> None:
    """Two all_reduces of 1 MB between two nodes: each node sends 2 MB."""
    program = (
        "import time, torch, torch.distributed as dist; dist.init_process_group('gloo'); x = torch.ones(250_000)\n"
    )
    program += "dist.all_reduce(x); dist.barrier(); t = time.perf_counter(); dist.all_reduce(x); dist.all_reduce(x)\n"
    program += "print('took', time.perf_counter() - t); dist.destroy_process_group()"
    command = ["--", sys.executable, "-c", program]
    ended = run(cluster("--nodes", "2", "--rate", "50mbit", *command), tmp_path).expect(0)
    times = [float(value) for value in re.findall(r"took (\S+)", ended.stdout)]
    assert len(times) == 2
    assert max(times) > 0.9 * 2 * 8e6 / 50e6
    assert max(times) < 2 * 2 * 8e6 / 50e6


def test_a_link_can_be_given_another_rate_at_both_ends() -> None:
    def rates(node: Node) -> list[int]:
        found = []
        for namespace, interface in ((node.namespace, INTERFACE), (node.bridge, node.name)):
            command = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{namespace}", "tc", "qdisc", "show", "dev", interface]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found += [int(value) for value in re.findall(r"tbf .*rate (\d+)Mbit", said)]
        return found

    with network(2, 100_000_000) as (one, other):
        assert rates(one) == rates(other) == [100, 100]
        one.shape(30_000_000)
        assert rates(one) == [30, 30]
        assert rates(other) == [100, 100]


def test_an_all_reduce_takes_what_the_link_allows_and_the_kernel_counts_its_frames(tmp_path: Path) -> None:
    """The benchmark's targets; a busy machine gets a second and a third chance at the time."""
    times = []
    for _ in range(3):
        cell = measure("100mbit")
        assert all(1.04 < ratio < 1.07 for ratio in cell.nic_over_wire), cell
        times.append(cell.time_over_ideal)
        if times[-1] < 1.12:
            break
    assert 1.04 < min(times) < 1.12, times


def test_a_failing_node_ends_the_others_and_passes_its_code_on(tmp_path: Path, host: None) -> None:
    begun = time.monotonic()
    ended = run(cluster("--nodes", "3", "--", sys.executable, PROGRAM, "--fail", "1"), tmp_path, timeout=60).expect(7)
    assert time.monotonic() - begun < 40
    assert "dtrain: error" not in ended.stderr
    assert_nothing_is_left(PROGRAM, *namespaces(ended.stdout))


def test_a_node_that_a_signal_ends_fails_as_in_a_shell_and_is_named(tmp_path: Path) -> None:
    command = ["sh", "-c", "test $RANK = 0 && exec sleep 50; kill -9 $$"]
    ended = run(cluster("--nodes", "2", "--", *command), tmp_path, timeout=60).expect(137)
    assert "[node1] ended with exit code 137, so the other nodes are ended" in ended.stdout


def test_training_reads_its_nodes_own_interface(tmp_path: Path) -> None:
    settings = ["num_steps=6", "batch_size=2", "eval_every_epochs=0", "observe.progress=false", "run_dir=run"]
    settings += ["model=squeezenet1_0", "model.num_classes=1000"]
    run(cluster("--nodes", "2", "--", *train_command(*settings)), tmp_path).expect(0)
    summary = read_summary(tmp_path / "run")
    assert summary["world_size"] == 2
    assert 1.04 < summary["nic_bytes_per_step"] / summary["wire_bytes_per_step"] < 1.08


def wait_for_nodes(process: subprocess.Popen[str], num_nodes: int) -> None:
    assert process.stdout is not None
    for _ in range(num_nodes):
        line = process.stdout.readline()
        assert "up" in line, (line, process.poll())


def running(tmp_path: Path, word: str, *wrapper: str) -> tuple[subprocess.Popen[str], set[str]]:
    """A cluster of 2 nodes that sleep, and their namespaces."""
    process = start(cluster("--nodes", "2", "--", *wrapper, sys.executable, "-c", SLEEPER, word), tmp_path)
    try:
        wait_for_nodes(process, 2)
        names = {namespace_of(pid) for pid in processes_with(word)} - {namespace_of("self")}
        assert len(names) == 2
    except BaseException:
        os.kill(process.pid, signal.SIGKILL)
        raise
    return process, names


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_nodes_and_leaves_nothing(tmp_path: Path, host: None, number: signal.Signals) -> None:
    word = f"asleep-{os.getpid()}-{number}"
    process, names = running(tmp_path, word)
    os.kill(process.pid, number)
    ended = finish(process, 30).expect(130)
    assert "sent, B" in ended.stdout
    assert_nothing_is_left(word, *names)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_while_nodes_are_made_is_an_end_in_one_line(
    tmp_path: Path, host: None, number: signal.Signals
) -> None:
    word = f"early-{os.getpid()}-{number}"
    process = start(cluster("--nodes", "250", "--", "true", word), tmp_path)
    held: set[str] = set()
    deadline = time.monotonic() + 120
    while len(held) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        held = namespaces(" ".join(open_files(process.pid)))
        time.sleep(0.01)
    os.kill(process.pid, number)
    ended = finish(process, 60).expect(130)
    assert (ended.stdout, ended.stderr) == ("", "dtrain: interrupted\n")
    assert_nothing_is_left(word)  # and the namespaces, which only its open files held, are gone with it


def open_files(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found.append(str(link.readlink()))
    return found


def test_a_second_ctrl_c_does_not_wait_for_a_node_that_ignores_the_first(tmp_path: Path, host: None) -> None:
    word = f"deaf-{os.getpid()}"
    process, names = running(tmp_path, word, "sh", "-c", "trap '' INT TERM; \"$@\"", "sh")
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1.0)
    begun = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    finish(process, 30).expect(130)
    assert time.monotonic() - begun < 5
    assert_nothing_is_left(word, *names)


def test_kill_9_leaves_nothing(tmp_path: Path, host: None) -> None:
    """Not even programs that left their session."""
    word = f"orphan-{os.getpid()}"
    process, names = running(tmp_path, word, "setsid", "--wait")
    os.kill(process.pid, signal.SIGKILL)
    finish(process, 30).expect(-signal.SIGKILL)
    assert_nothing_is_left(word, *names)


def test_two_clusters_at_once_do_not_see_each_other(tmp_path: Path, host: None) -> None:
    words = [f"neighbour-{os.getpid()}-{index}" for index in range(2)]
    first, first_names = running(tmp_path, words[0])
    second, second_names = running(tmp_path, words[1])
    assert not first_names & second_names
    os.kill(second.pid, signal.SIGKILL)
    finish(second, 30)
    assert_nothing_is_left(words[1], *second_names)
    assert run(cluster("--nodes", "2", "--", sys.executable, PROGRAM), tmp_path).expect(0).stdout.count("sum 2") == 2
    assert first.poll() is None
    assert all(users(name) for name in first_names)
    os.kill(first.pid, signal.SIGINT)
    finish(first, 30).expect(130)
    assert_nothing_is_left(words[0], *first_names)


def the_line(ended: Ended) -> str:
    (line,) = ended.expect(2).stderr.splitlines()
    assert line.startswith("dtrain: error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--rate", "fast", "--", "true"], "--rate fast must be a number and its unit"),
        (["--rate", "1mbit2", "--", "true"], "such as 100mbit"),
        (["--rate", "0mbit", "--", "true"], "from 100kbit"),
        (["--nodes", "0", "--", "true"], "--nodes 0"),
        (["--", "no-such-program"], "no-such-program is not in PATH"),
        (["--", "torchrun", "--standalone", "x.py"], "leave it out"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: list[str], part: str) -> None:
    assert part in the_line(run(cluster(*arguments), tmp_path))


def test_without_root_or_its_privileges_it_says_so(tmp_path: Path) -> None:
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    ended = run([*drop, *cluster("--", "true")], tmp_path)
    assert "in a container --privileged" in the_line(ended)
    as_nobody = (
        "import os, sys, dtrain.cluster; from dtrain.cli import main; os.setuid(65534); sys.exit(main(sys.argv[1:]))"
    )
    ended = run([sys.executable, "-c", as_nobody, "cluster", "run", "--", "true"], tmp_path)
    assert the_line(ended) == "dtrain: error: a cluster needs root, for network namespaces: run it as root"


def test_without_pyroute2_it_names_the_extra(tmp_path: Path) -> None:
    program = "import sys; sys.modules['pyroute2'] = None; from dtrain.cli import main; sys.exit(main(sys.argv[1:]))"
    ended = run([sys.executable, "-c", program, "cluster", "run", "--", "true"], tmp_path)
    assert the_line(ended) == "dtrain: error: dtrain cluster needs pyroute2: pip install 'dtrain[cluster]'"


@pytest.mark.parametrize("tool", TOOLS)
def test_a_missing_tool_is_named_with_its_package(tmp_path: Path, tool: str) -> None:
    for present in {*TOOLS, "true"} - {tool}:
        (tmp_path / present).symlink_to(str(shutil.which(present)))
    ended = run(cluster("--", "true"), tmp_path, env=environment({"PATH": str(tmp_path)}))
    assert the_line(ended) == f"dtrain: error: a cluster needs {tool}: install util-linux"


def test_a_long_line_of_output_arrives_whole(tmp_path: Path) -> None:
    program = "print('x' * 200_000)"
    ended = run(cluster("--nodes", "2", "--json", "--", sys.executable, "-c", program), tmp_path).expect(0)
    assert sorted(ended.stderr.splitlines()) == [f"[node{node}] {'x' * 200_000}" for node in range(2)]
    json.loads(ended.stdout)
