"""What a task of srun's reads off its variables, without a Slurm."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest
from stand_in import stand_in

from dtrain.comm import Launch, detect_launch, join_step, slurm, threads_per_rank

TASK = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_CPUS_ON_NODE": "9",
}


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node0", ["node0"]),
        ("login,node[00-02,07]", ["login", "node00", "node01", "node02", "node07"]),
        ("a[8-11]", ["a8", "a9", "a10", "a11"]),
        ("rack[0-1]n[1,3],z", ["rack0n1", "rack0n3", "rack1n1", "rack1n3", "z"]),
        ("gpu[1]-ib", ["gpu1-ib"]),
    ],
)
def test_a_list_of_hosts_is_spelled_out(text: str, hosts: list[str]) -> None:
    assert list(slurm.expand_hosts(text)) == hosts


@pytest.mark.parametrize("text", ["node[0-", "node[a-b]", "node[0-1]]", "node 1"])
def test_what_is_no_list_of_hosts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Slurm's list of hosts"):
        list(slurm.expand_hosts(text))


def test_a_task_of_a_step_is_a_rank() -> None:
    assert detect_launch(TASK) == Launch("srun", 5, 1, 7, 2)
    assert threads_per_rank(Launch("srun", 5, 1, 7, 2), TASK) == 4
    assert threads_per_rank(Launch("srun", 5, 1, 7, 2), {**TASK, "SLURM_CPUS_PER_TASK": "3"}) == 3


def test_a_batch_script_and_a_step_of_one_task_are_no_rank() -> None:
    batch = {name: value for name, value in TASK.items() if "STEP" not in name}
    assert detect_launch(batch).launcher == "none"
    assert detect_launch({**TASK, "SLURM_STEP_NUM_TASKS": "1"}).launcher == "none"


def test_a_launcher_inside_a_step_knows_better() -> None:
    assert detect_launch({**TASK, "RANK": "0", "WORLD_SIZE": "2"}).launcher == "torchrun"


def test_variables_that_make_no_sense_are_named() -> None:
    with pytest.raises(ValueError, match=r"SLURM_NODEID=9.*start the step again with srun"):
        detect_launch({**TASK, "SLURM_NODEID": "9"})


def test_ranks_meet_on_the_first_host_at_a_port_of_their_step() -> None:
    environ = dict(TASK)
    assert join_step(detect_launch(environ), "gloo", environ) == Launch("torchrun", 5, 1, 7, 2)
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("localhost", str(15000 + 707))
    assert "GLOO_SOCKET_IFNAME" not in environ
    assert slurm.rendezvous({**TASK, "SLURM_STEP_ID": "1"})["MASTER_PORT"] != environ["MASTER_PORT"]
    set_by_hand = slurm.rendezvous({**TASK, "MASTER_ADDR": "10.1.2.3", "MASTER_PORT": "4000"})
    assert (set_by_hand["MASTER_ADDR"], set_by_hand["MASTER_PORT"]) == ("10.1.2.3", "4000")


def test_mpi_asks_slurm_by_itself() -> None:
    environ = dict(TASK)
    assert join_step(detect_launch(environ), "mpi", environ).launcher == "mpirun"
    assert environ == TASK
    assert join_step(Launch("none", 0, 0, 1, 1), "gloo", environ).launcher == "none"


def test_of_several_hosts_the_interface_is_the_one_that_leads_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "_is_resolved", lambda name: True)
    asked: list[str] = []
    monkeypatch.setattr(slurm, "interface_towards", lambda host: asked.append(host) or "ib0")
    hosts = {**TASK, "SLURM_STEP_NODELIST": "a[1-4]"}
    assert slurm.rendezvous(hosts)["GLOO_SOCKET_IFNAME"] == "ib0"
    assert slurm.rendezvous({**hosts, "SLURM_NODEID": "0"})["GLOO_SOCKET_IFNAME"] == "ib0"
    assert asked == ["a1", "a2"]


def test_names_that_only_slurm_knows_are_asked_of_scontrol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "_is_resolved", lambda name: name == "127.0.0.1")
    monkeypatch.setattr(slurm, "shutil", stand_in(shutil, which=lambda name: f"/bin/{name}"))

    def scontrol(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        address = "127.0.0.1" if command[-1] == "n0" else "nowhere"
        return subprocess.CompletedProcess(command, 0, f"NodeName=x NodeAddr={address} Port=1", "")

    monkeypatch.setattr(slurm, "subprocess", stand_in(subprocess, run=scontrol))
    assert slurm.rendezvous({**TASK, "SLURM_STEP_NODELIST": "n0"})["MASTER_ADDR"] == "127.0.0.1"
    with pytest.raises(ValueError, match=r"n1, of Slurm's list of hosts, is not resolved here.*set MASTER_ADDR"):
        slurm.rendezvous({**TASK, "SLURM_STEP_NODELIST": "n1"})
