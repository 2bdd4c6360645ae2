"""`dtrain doctor` on machines that are broken in one way each."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from programs import dtrain_command, environment, run

from dtrain.doctor import Check, Severity, backends, exit_code, host, reachability

pytestmark = pytest.mark.timeout(600)
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="a host of another name takes root and util-linux"
)


def in_namespaces(shell: str, function: str) -> tuple[str, str, str]:
    """What a check says where the shell commands have changed the host's name or network: severity, finding, cure."""
    program = (
        f"from dtrain.doctor import reachability as r; c = r.{function}; print(c.severity, c.finding, c.cure, sep='|')"
    )
    script = f'{shell}; exec "$@"'
    command = ["unshare", "--uts", "--net", "--mount", "sh", "-ec", script, "sh", sys.executable, "-c", program]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=True)
    severity, finding, cure = done.stdout.strip().split("|")
    return severity, finding, cure


def hosts_file(tmp_path: Path, content: str) -> str:
    (tmp_path / "hosts").write_text(content)
    return f"mount --bind {tmp_path}/hosts /etc/hosts; hostname strange.invalid; ip link set lo up"


@needs_namespaces
def test_a_host_s_name_that_does_not_resolve_is_an_error(tmp_path: Path) -> None:
    severity, finding, cure = in_namespaces(hosts_file(tmp_path, "127.0.0.1 localhost\n"), "names()")
    assert (severity, finding) == ("error", "the host's name, strange.invalid, does not resolve")
    assert "/etc/hosts" in cure


@needs_namespaces
def test_a_host_s_name_on_127_0_1_1_is_a_warning(tmp_path: Path) -> None:
    severity, finding, _ = in_namespaces(hosts_file(tmp_path, "127.0.1.1 strange.invalid\n"), "names()")
    assert (severity, finding) == ("warning", "strange.invalid is 127.0.1.1, which only this host can reach")


@needs_namespaces
def test_a_host_s_name_on_an_address_of_another_is_an_error(tmp_path: Path) -> None:
    severity, finding, _ = in_namespaces(hosts_file(tmp_path, "10.9.9.9 strange.invalid\n"), "names()")
    assert (severity, finding) == ("error", "strange.invalid is 10.9.9.9, which no interface here has")


@needs_namespaces
def test_a_host_on_a_network_is_well_and_gloo_takes_its_interface(tmp_path: Path) -> None:
    shell = hosts_file(tmp_path, "10.9.9.9 strange.invalid\n")
    shell += "; ip link add eth0 type veth peer name other; ip addr add 10.9.9.9/24 dev eth0; ip link set eth0 up"
    assert in_namespaces(shell, "names()")[:2] == ("ok", "strange.invalid is 10.9.9.9, which is strange.invalid")
    assert in_namespaces(shell, "gloo_interface({})")[:2] == ("ok", "eth0 10.9.9.9, by the host's name")
    assert in_namespaces(shell, "interfaces()")[1] == "lo 127.0.0.1, other (no address), eth0 10.9.9.9"


def test_an_interface_that_does_not_exist_is_an_error() -> None:
    check = reachability.gloo_interface({"GLOO_SOCKET_IFNAME": "eth99"})
    assert (check.severity, check.finding) == (Severity.ERROR, "GLOO_SOCKET_IFNAME=eth99 does not exist here")
    assert "lo" in check.cure
    assert reachability.gloo_interface({"GLOO_SOCKET_IFNAME": "lo"}).severity is Severity.OK


def test_a_port_that_is_taken_is_a_warning() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        check = reachability.rendezvous_port({"MASTER_PORT": port})
        assert (check.severity, check.finding) == (
            Severity.WARNING,
            f"{port}, for the rendezvous: Address already in use",
        )
    assert reachability.rendezvous_port({"MASTER_PORT": port}).severity is Severity.OK
    assert reachability.rendezvous_port({"MASTER_PORT": "http"}).severity is Severity.ERROR


def test_more_threads_than_cores_is_a_warning() -> None:
    cores = len(os.sched_getaffinity(0))
    check = host.threads({"OMP_NUM_THREADS": str(cores)}, local_world_size=2)
    assert (check.severity, check.finding) == (
        Severity.WARNING,
        f"{cores} cores for 2 x {cores} threads (ranks here x OMP_NUM_THREADS)",
    )
    assert host.threads({"OMP_NUM_THREADS": "1"}, local_world_size=1).severity is Severity.OK
    assert host.threads({}, local_world_size=1).severity is Severity.NOTE
    assert host.threads({"OMP_NUM_THREADS": "all"}, local_world_size=1).severity is Severity.ERROR


def test_a_folder_for_runs_that_cannot_be_made_or_is_full_is_not_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert host.disk(tmp_path / "file" / "runs").severity is Severity.ERROR
    assert host.disk(Path("/proc/runs")).severity is not Severity.OK
    assert host.disk(tmp_path / "not yet" / "runs").severity is Severity.OK
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, free=10**8))
    assert host.disk(tmp_path).severity is Severity.WARNING
    assert host.shared_memory(tmp_path).severity is Severity.WARNING
    assert host.shared_memory(tmp_path / "nowhere").severity is Severity.WARNING


def test_without_mpi4py_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    check = backends.mpi_stack()
    assert (check.severity, check.cure) == (Severity.NOTE, "pip install 'dtrain[mpi]'")


def test_an_mpiexec_of_another_make_is_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'dtrain[mpi]'")
    for name, version, expected in (
        ("mpich", "HYDRA build details: Version 5", Severity.OK),
        ("open", "mpiexec (Open MPI) 5.0", Severity.WARNING),
    ):
        mpiexec = tmp_path / name / "mpiexec"
        mpiexec.parent.mkdir()
        mpiexec.write_text(f"#!/bin/sh\necho '{version}'\n")
        mpiexec.chmod(0o755)
        assert backends.mpi_stack(str(mpiexec.with_name("python"))).severity is expected


def test_exit_codes() -> None:
    def code(*severities: Severity) -> int:
        return exit_code([Check("name", severity, "finding") for severity in severities])

    assert code() == code(Severity.OK, Severity.NOTE) == 0
    assert code(Severity.OK, Severity.WARNING) == 3
    assert code(Severity.WARNING, Severity.ERROR) == 1


def test_the_command_gives_every_check_and_an_error_s_exit_code(tmp_path: Path) -> None:
    env = environment({"GLOO_SOCKET_IFNAME": "eth99"})
    ended = run(dtrain_command("doctor", "--json"), tmp_path, env=env).expect(1)
    severities = {check["name"]: check["severity"] for check in ended.json}
    assert severities["gloo's interface"] == "error"
    assert {"versions", "gloo", "nccl", "mpi", "horovod", "names", "port", "threads", "disk"} <= severities.keys()
    text = run(dtrain_command("doctor"), tmp_path, env=env).expect(1)
    assert "eth99" in text.stdout
    assert text.stderr == ""
    assert list(tmp_path.iterdir()) == []


def measured(checks: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {check["name"]: check["finding"] for check in checks}


@pytest.mark.parametrize("launcher", ["none", "torchrun"])
def test_net_measures_between_ranks(tmp_path: Path, launcher: str) -> None:
    command = dtrain_command("doctor", "--net", "--json")
    if launcher == "torchrun":
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = run(command, tmp_path, env=environment({"GLOO_SOCKET_IFNAME": "lo"}), timeout=400)
    assert ended.stdout, ended.stderr
    found = measured(ended.json)
    assert found["ranks"] == f"2 on 1 host(s): {socket.gethostname()}: 0, 1"
    assert " us for an all_reduce of 4 B" in found["latency"]
    assert "GB/s" in found["bandwidth"]
    assert float(found["clock skew"].split(" ms")[0].split()[-1]) < 100
