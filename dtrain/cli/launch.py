"""Start ranks: launch."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.arguments.names import nearest
from dtrain.cli.output import Verbs

if TYPE_CHECKING:
    from dtrain.launch.command import Command
    from dtrain.launch.hosts import Host

_DESCRIPTION = """\
Runs `python -m dtrain.train SETTING...`, or your own program, on every rank:
  dtrain launch -n 4 model=squeezenet1_1 data=digits compressor=int4
  dtrain launch -n 4 -- train.py --my-option             # or -- -m MODULE ..., or any command
  dtrain launch -H node0:4,node1:4 model=squeezenet1_1   # by ssh, without a password
  srun --ntasks=8 dtrain launch model=squeezenet1_1      # inside Slurm: its tasks are the ranks
Options come before settings."""
_EPILOG = """\
Exit code: of the rank that failed first (2 a mistake in the request, 75 saved for SIGTERM), 130 after Ctrl-C, 143 after
SIGTERM. Each rank has its share of the cores as threads, unless OMP_NUM_THREADS is set."""
DEFAULT_RANKS = 2


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    launch = verbs.add_parser(
        "launch",
        help="start ranks: on this host, on several by ssh, in Slurm, or as a manifest for Kubernetes",
        usage="dtrain launch [OPTION...] [SETTING... | -- PROGRAM ARGUMENT...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = launch.add_argument
    add("-n", dest="ranks", type=positive, metavar="RANKS", help=f"how many (default: {DEFAULT_RANKS})")
    add("--id", metavar="ID", help="the job's name: a later start under it goes on with what this one leaves")
    add("--restarts", type=_count, metavar="K", help="start all ranks again so often, when one fails (default: 0)")
    add("--interface", metavar="NAME", help="the network interface that carries the exchange")
    add("--launcher", choices=("torchrun", "mpirun", "horovodrun"), help="default: the one that backend=... needs")
    add("--program", nargs=argparse.REMAINDER, metavar="PROGRAM ...", help="as `-- PROGRAM ...`")
    add("--dry-run", action="store_true", help="print what would be run, one command a line, and do not run it")

    hosts = launch.add_argument_group("several hosts, by ssh").add_argument
    hosts("-H", "--hosts", metavar="HOST:RANKS,...", help="which, and how many ranks on each (default: -n, else 1)")
    hosts("--hostfile", type=Path, metavar="FILE", help="the same, one a line: `node0 slots=2` or `node0:2`")
    hosts("--python", metavar="PATH", help="the interpreter there (default: the path of this one)")
    hosts("--ssh-options", type=shlex.split, default=[], metavar="OPTIONS", help="such as '-p 2222 -i key'")

    by_hand = launch.add_argument_group("several hosts, started on each by hand").add_argument
    by_hand("--nodes", type=positive, metavar="N", help="how many hosts, with -n ranks each")
    by_hand("--node-rank", type=_count, metavar="R", help="which of them this is, from 0")
    by_hand("--master", metavar="HOST[:PORT]", help="host 0 as the others reach it (default port: 29500)")
    by_hand("--elastic", type=_range, metavar="MIN:MAX", help="go on with so many hosts, which come and leave")

    kubernetes = launch.add_argument_group("Kubernetes, with Kubeflow").add_argument
    kubernetes("--kubernetes", action="store_true", help="print a TrainJob of -n pods, one rank each")
    kubernetes("--pytorchjob", action="store_true", help="print a PyTorchJob, of Kubeflow's older training operator")
    kubernetes("--image", help="of the pods (default: dtrain:torch, which docker/Dockerfile builds)")

    launch.add_argument("settings", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    launch.set_defaults(run=_launch, known=[name for action in launch._actions for name in action.option_strings])


def _launch(parsed: argparse.Namespace) -> int:
    from dtrain.launch import mpi
    from dtrain.launch.command import check_interface, program_of

    settings, command = _split(parsed)
    for option in (text for text in settings if text.startswith("-")):
        name = option.partition("=")[0]
        if name in parsed.known:
            raise ValueError(f"{option} stands behind a setting: put options before settings")
        raise ValueError(f"{name} is no option of dtrain launch{nearest(name, parsed.known)}: see dtrain launch --help")
    program = program_of(settings, command)
    launcher = parsed.launcher or _needed_by(settings)
    has_hosts = parsed.hosts is not None or parsed.hostfile is not None
    _refuse_what_has_no_use(parsed, launcher, has_hosts)
    if parsed.kubernetes or parsed.pytorchjob:
        return _print_manifest(parsed, program, launcher)
    if has_hosts and launcher == "torchrun":
        return _by_ssh(parsed, program)
    if launcher == "torchrun":
        if parsed.interface is not None:
            check_interface(parsed.interface)
        made = _in_step(parsed, program) if _is_task_of_slurm() else _here(parsed, program)
    else:
        hosts = _hosts(parsed, None) if has_hosts else ()
        ranks = parsed.ranks or (sum(host.ranks for host in hosts) or DEFAULT_RANKS)
        if launcher == "mpirun":
            made = mpi.mpirun(program, ranks, hosts, parsed.hostfile)
        else:
            made = mpi.horovodrun(program, ranks, hosts, parsed.interface)
    if parsed.dry_run:
        print(made.line())
        return 0
    return made.become()


def _print_manifest(parsed: argparse.Namespace, program: Sequence[str], launcher: str) -> int:
    from dtrain.launch import kubernetes

    given = {**_by_hand(parsed), "--restarts": parsed.restarts, "--interface": parsed.interface}
    given |= {"-H": parsed.hosts, "--hostfile": parsed.hostfile}
    for option in (option for option, value in given.items() if value is not None):
        raise ValueError(f"{option} goes without a manifest for Kubernetes: leave it out")
    if launcher != "torchrun":
        raise ValueError("Kubeflow's pods start torchrun, for ranks of gloo and NCCL: leave out backend=mpi, horovod")
    make = kubernetes.pytorchjob if parsed.pytorchjob else kubernetes.trainjob
    ranks = parsed.ranks or DEFAULT_RANKS
    name, image = parsed.id or kubernetes.DEFAULT_NAME, parsed.image or kubernetes.DEFAULT_IMAGE
    print(kubernetes.as_text(make(name, image, ranks, program), ranks), end="")
    return 0


def _split(parsed: argparse.Namespace) -> tuple[list[str], list[str] | None]:
    """The settings, and the program in place of them."""
    settings, command = parsed.settings, parsed.program
    if "--" not in settings:
        return settings, command
    if command is not None:
        raise ValueError("name one program: with --program, or behind --")
    at = settings.index("--")
    return settings[:at], settings[at + 1 :]


def _is_task_of_slurm() -> bool:
    if "SLURM_STEP_ID" not in os.environ:
        return False
    from dtrain.comm import slurm

    return slurm.is_task(os.environ)


def _needed_by(settings: Sequence[str]) -> str:
    """The launcher that can start ranks of this backend."""
    backends = ["gloo", *(text.partition("=")[2] for text in settings if text.startswith("backend="))]
    return {"mpi": "mpirun", "horovod": "horovodrun"}.get(backends[-1], "torchrun")


def _refuse_what_has_no_use(parsed: argparse.Namespace, launcher: str, has_hosts: bool) -> None:
    for_torchrun = {"--id": parsed.id, "--restarts": parsed.restarts, **_by_hand(parsed)}
    given = [option for option, value in for_torchrun.items() if value is not None]
    if launcher != "torchrun" and given:
        raise ValueError(f"{given[0]} is for ranks of gloo and NCCL, which torchrun starts: leave it out")
    if launcher == "mpirun" and parsed.interface is not None:
        raise ValueError("--interface goes without MPI, which chooses by itself: leave it out")
    if (parsed.python is not None or parsed.ssh_options) and not (has_hosts and launcher == "torchrun"):
        raise ValueError("--python and --ssh-options are for hosts that are reached by ssh: add -H or --hostfile")
    if parsed.image is not None and not (parsed.kubernetes or parsed.pytorchjob):
        raise ValueError("--image is for a manifest: add --kubernetes")
    if parsed.hosts is not None and parsed.hostfile is not None:
        raise ValueError("-H and --hostfile both name the hosts: leave one out")
    by_hand = [option for option, value in _by_hand(parsed).items() if value is not None]
    if has_hosts and by_hand:
        raise ValueError(
            f"{by_hand[0]} is for hosts that are started by hand, -H and --hostfile start them: leave one out"
        )


def _by_hand(parsed: argparse.Namespace) -> dict[str, object]:
    return {
        "--nodes": parsed.nodes,
        "--node-rank": parsed.node_rank,
        "--master": parsed.master,
        "--elastic": parsed.elastic,
    }


def _here(parsed: argparse.Namespace, program: Sequence[str]) -> Command:
    """An agent of torchrun's on this host."""
    from dtrain.launch.command import DEFAULT_PORT, Torchrun, check_program, parse_master, threads_per_rank

    num_hosts = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    in_step = "SLURM_STEP_ID" in os.environ  # of one task
    nodes, ranks = parsed.nodes or 1, parsed.ranks or (1 if in_step else DEFAULT_RANKS)
    if num_hosts != "1" and not in_step and not (parsed.nodes or parsed.elastic):
        raise ValueError(f"this job of Slurm's has {num_hosts} hosts, and one would be used: srun dtrain launch ...")
    if parsed.elastic is not None:
        if parsed.id is None or parsed.master is None or parsed.nodes is not None or parsed.node_rank is not None:
            raise ValueError(
                "--elastic MIN:MAX goes with --id ID and --master HOST, and without --nodes and --node-rank"
            )
    elif nodes == 1:
        if parsed.node_rank is not None or parsed.master is not None:
            raise ValueError("--node-rank and --master are for several hosts: add --nodes N")
    elif parsed.node_rank is None or parsed.master is None:
        raise ValueError(f"--nodes {nodes} needs --node-rank R and --master HOST")
    elif parsed.node_rank >= nodes:
        raise ValueError(f"--node-rank {parsed.node_rank} is not from 0 to {nodes - 1}")
    master, port = (None, DEFAULT_PORT) if parsed.master is None else parse_master(parsed.master)
    check_program(program)
    by_environment = "PET_NNODES" in os.environ and parsed.nodes is None and parsed.elastic is None
    job = Torchrun(
        ranks,
        nodes,
        parsed.node_rank or 0,
        master,
        port,
        elastic=parsed.elastic,
        id=parsed.id,
        restarts=parsed.restarts,
        by_environment=by_environment,
    )
    return job.command(program, threads=threads_per_rank(ranks), interface=parsed.interface)


def _in_step(parsed: argparse.Namespace, program: Sequence[str]) -> Command:
    """This task is a rank."""
    from dtrain.comm import slurm
    from dtrain.launch.command import Command, as_process, check_program, on_interface

    given = {"-n": parsed.ranks, "--id": parsed.id, "--restarts": parsed.restarts, **_by_hand(parsed)}
    for option in (option for option, value in given.items() if value is not None):
        if os.environ["SLURM_PROCID"] != "0":
            raise SystemExit(2)  # task 0 says it
        cure = "srun --ntasks=N says how many ranks" if option == "-n" else "resume=latest goes on with what a job left"
        raise ValueError(f"{option} has no use in a step of Slurm's, whose tasks are the ranks: leave it out ({cure})")
    check_program(program)
    interface = {} if parsed.interface is None else on_interface(parsed.interface)
    variables = slurm.rendezvous({**os.environ, **interface})
    threads = os.environ.get("OMP_NUM_THREADS") or str(slurm.threads_per_task(os.environ))
    return Command(as_process(program), {**variables, **interface, "OMP_NUM_THREADS": threads})


def _by_ssh(parsed: argparse.Namespace, program: Sequence[str]) -> int:
    """An agent of torchrun's on each host."""
    from dtrain.launch import processes, ssh
    from dtrain.launch.command import Torchrun

    hosts = _hosts(parsed, parsed.ranks)
    how = ssh.Ssh(tuple(parsed.ssh_options), parsed.python or sys.executable)
    job = Torchrun(0, id=parsed.id, restarts=parsed.restarts)
    made = ssh.commands(how, hosts, job, program, parsed.interface)
    if parsed.dry_run:
        for command in made:
            print(command.line())
        return 0
    return processes.run_on_all(hosts, made)


def _hosts(parsed: argparse.Namespace, default_ranks: int | None) -> tuple[Host, ...]:
    from dtrain.launch.hosts import parse_hosts, read_hostfile

    if parsed.hosts is not None:
        return parse_hosts(parsed.hosts, default_ranks)
    return read_hostfile(parsed.hostfile, default_ranks)


def positive(text: str) -> int:
    """The type of an option that is a number of things."""
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return int(text)


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
    if match is None or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(f"{text} is not MIN:MAX, such as 1:4")
    return int(match[1]), int(match[2])
